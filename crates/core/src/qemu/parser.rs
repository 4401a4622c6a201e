//! The frame of the stream: header, configuration, commands, sections and their footers.

use super::commands::{self, Meaning};
use super::configuration::{self, Subsection};
use super::cursor::{Cursor, Stop};
use super::live::{self, Handler, Phase};
use super::ram::{Ram, Record};
use super::{Block, Item, LostCause, LostReason, Mark, PageAt};

const HEADER: [u8; 8] = *b"QEVM\0\0\0\x03";

const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const SECTION_FULL: u8 = 0x04;
const CONFIGURATION: u8 = 0x07;
const COMMAND: u8 = 0x08;
const SECTION_FOOTER: u8 = 0x7e;

const RAM_VERSION: u32 = 4;

/// Sections that may be live at once: RAM, dirty bitmaps, and one for each VFIO device, of which a host has tens.
const LIVE_SECTIONS_MAX: usize = 1024;

/// Follows QEMU's migration stream, on its main channel, from its header to the end of RAM. It holds no stream bytes: the
/// caller shows it the front of what it has.
pub struct Parser {
    state: State,
    /// Payload bytes to pass on before `state` applies.
    skip: u64,
    position: u64,
    /// A mark that was reached and not yet handed out.
    mark: Option<Mark>,
    ram: Ram,
    sections: Vec<(u32, Section)>,
    switchover: bool,
    postcopy: bool,
}

/// What comes next in the stream.
#[derive(Clone, Copy)]
enum State {
    Header,
    Configuration,
    ConfigurationSubsection,
    Capabilities {
        left: u32,
    },
    /// A command, or a section's header.
    Section,
    Records {
        id: u32,
        phase: Phase,
    },
    BlockList {
        id: u32,
        phase: Phase,
        left: u64,
    },
    Elements {
        id: u32,
        phase: Phase,
        handler: Handler,
        first: bool,
    },
    VirtioMem {
        id: u32,
    },
    /// A footer, if this machine type writes them.
    Footer {
        id: u32,
        ends_ram: bool,
    },
    Opaque,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Ram,
    Live(Handler),
}

/// What stands at the front of the input.
enum Front<'a> {
    /// So many bytes to pass on; the parser's state is already behind them.
    Bytes(usize),
    /// A page's record, so many bytes long; the parser's state is still before it.
    Record { bytes: usize, at: PageAt, item: Item<'a> },
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the first byte of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            skip: 0,
            position: 0,
            mark: None,
            ram: Ram::new(),
            sections: Vec::new(),
            switchover: false,
            postcopy: false,
        }
    }

    /// Looks at the front of `input`, the stream from [`Parser::position`] on as far as it has been read. Returns how many
    /// bytes it consumed and what they are; `None` if it needs more than it was given: keep `input` and append to it. It
    /// asks for at most a page and 1 KiB at once, and for nothing when it [is opaque](Parser::is_opaque).
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Option<(usize, Item<'a>)> {
        // Everything up to the next page or mark is one item.
        let mut passed = 0;
        while self.mark.is_none() {
            let rest = input.get(passed..)?;
            let bytes = match self.front(rest) {
                Ok(Front::Bytes(bytes)) => bytes,
                Ok(Front::Record { bytes, at, item }) if passed == 0 => {
                    self.ram.previous = Some(at.block);
                    self.position += bytes as u64;
                    return Some((bytes, item));
                }
                Ok(Front::Record { .. }) | Err(Stop::More) => break,
                Err(Stop::Malformed(cause)) => {
                    self.state = State::Opaque;
                    self.mark = Some(Mark::Lost(LostReason {
                        position: self.position,
                        cause,
                    }));
                    break;
                }
            };
            passed += bytes;
            self.position += bytes as u64;
        }
        if passed > 0 {
            return input.get(..passed).map(|bytes| (passed, Item::Bytes(bytes)));
        }
        self.mark.take().map(|mark| (0, Item::Mark(mark)))
    }

    /// The block table, in the order of the stream's list; complete from [`Mark::Blocks`] on.
    pub fn blocks(&self) -> &[Block] {
        &self.ram.blocks
    }

    /// Length of a guest page, bytes; settled before [`Mark::Blocks`].
    pub fn page_bytes(&self) -> usize {
        self.ram.page_bytes
    }

    /// Bytes of the stream consumed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether everything from here on is [`Item::Bytes`]: after [`Mark::RamEnd`] or [`Mark::Lost`].
    pub fn is_opaque(&self) -> bool {
        matches!(self.state, State::Opaque)
    }

    /// Reads what stands at the front of `input`. Changes the parser only if it returns `Front::Bytes`.
    fn front<'a>(&mut self, input: &'a [u8]) -> Result<Front<'a>, Stop<LostCause>> {
        if self.skip > 0 {
            let bytes = usize::try_from(self.skip).map_or(input.len(), |skip| skip.min(input.len()));
            self.skip -= bytes as u64;
            return if bytes > 0 {
                Ok(Front::Bytes(bytes))
            } else {
                Err(Stop::More)
            };
        }
        let mut cursor = Cursor::new(input);
        match self.state {
            State::Header => {
                // A stream that begins otherwise may be shorter than a header and still wait for an answer.
                if !input.iter().zip(HEADER).all(|(byte, expected)| *byte == expected) {
                    return Err(LostCause::Header.into());
                }
                cursor.take(HEADER.len())?;
                self.state = State::Configuration;
            }
            State::Configuration => {
                if cursor.peek().u8()? == CONFIGURATION {
                    cursor.u8()?;
                    // The machine type's name.
                    self.skip = u64::from(cursor.u32()?);
                    self.state = State::ConfigurationSubsection;
                } else {
                    self.state = State::Section;
                }
            }
            State::ConfigurationSubsection => self.configuration_subsection(&mut cursor)?,
            State::Capabilities { left: 0 } => self.state = State::ConfigurationSubsection,
            State::Capabilities { left } => {
                match cursor.str8()? {
                    b"mapped-ram" => return Err(LostCause::Capability("mapped-ram").into()),
                    b"x-ignore-shared" => self.ram.ignore_shared = true,
                    _ => {}
                }
                self.state = State::Capabilities { left: left - 1 };
            }
            State::Section => self.section(&mut cursor)?,
            State::Records { id, phase } => return self.record(id, phase, input),
            State::BlockList { id, phase, left: 0 } => {
                self.mark = Some(Mark::Blocks);
                self.state = State::Records { id, phase };
            }
            State::BlockList { id, phase, left } => {
                let left = self.ram.block(left, &mut cursor)?;
                self.state = State::BlockList { id, phase, left };
            }
            State::Elements {
                id,
                phase,
                handler,
                first,
            } => {
                let element = handler.element(phase, first, &mut cursor)?;
                self.skip = element.data;
                self.state = if element.last {
                    State::Footer { id, ends_ram: false }
                } else {
                    State::Elements {
                        id,
                        phase,
                        handler,
                        first: false,
                    }
                };
            }
            State::VirtioMem { id } => {
                self.skip = live::virtio_mem(&mut cursor)?.data;
                self.state = State::Footer { id, ends_ram: false };
            }
            State::Footer { id, ends_ram } => self.footer(id, ends_ram, &mut cursor)?,
            State::Opaque if input.is_empty() => return Err(Stop::More),
            State::Opaque => return Ok(Front::Bytes(input.len())),
        }
        Ok(Front::Bytes(cursor.consumed()))
    }

    fn configuration_subsection(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop<LostCause>> {
        match configuration::subsection(cursor)? {
            Some(Subsection::PageBytes(bytes)) => self.ram.page_bytes = bytes,
            Some(Subsection::Capabilities(left)) => self.state = State::Capabilities { left },
            Some(Subsection::Uuid) => {}
            None => self.state = State::Section,
        }
        Ok(())
    }

    fn section(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop<LostCause>> {
        match cursor.u8()? {
            COMMAND => {
                let (meaning, more) = commands::command(cursor)?;
                self.skip = more;
                match meaning {
                    Meaning::AdviseRam { page_sizes } => self.ram.page_sizes = Some(page_sizes),
                    Meaning::Switchover => self.reach_switchover(),
                    Meaning::Postcopy => self.reach_postcopy(),
                    Meaning::Nothing => {}
                }
            }
            SECTION_START => {
                let (id, idstr, version) = section_header(cursor)?;
                let section = match Handler::from_idstr(idstr) {
                    _ if idstr == b"ram" && version == RAM_VERSION => Section::Ram,
                    _ if idstr == b"ram" => return Err(LostCause::RamVersion(version).into()),
                    Some(handler) => Section::Live(handler),
                    None => return Err(unknown_section(idstr)),
                };
                self.start(id, section)?;
                self.enter(id, section, Phase::Start);
            }
            kind @ (SECTION_PART | SECTION_END) => {
                let id = cursor.u32()?;
                let section = self.sections.iter().find(|(known, _)| *known == id);
                let section = section.ok_or(LostCause::SectionId(id))?.1;
                let phase = if kind == SECTION_END { Phase::End } else { Phase::Part };
                if section == Section::Ram && phase == Phase::End {
                    self.reach_switchover();
                }
                self.enter(id, section, phase);
            }
            SECTION_FULL => {
                let (id, idstr, _) = section_header(cursor)?;
                if !live::is_virtio_mem(idstr) {
                    return Err(unknown_section(idstr));
                }
                self.state = State::VirtioMem { id };
            }
            kind => return Err(LostCause::SectionType(kind).into()),
        }
        Ok(())
    }

    fn start(&mut self, id: u32, section: Section) -> Result<(), LostCause> {
        let repeated =
            |(known, other): &(u32, Section)| *known == id || (section == Section::Ram && *other == Section::Ram);
        if self.sections.iter().any(repeated) {
            return Err(LostCause::SectionId(id));
        }
        if self.sections.len() >= LIVE_SECTIONS_MAX {
            return Err(LostCause::TooManySections(LIVE_SECTIONS_MAX));
        }
        self.sections.push((id, section));
        Ok(())
    }

    fn enter(&mut self, id: u32, section: Section, phase: Phase) {
        self.state = match section {
            Section::Ram => State::Records { id, phase },
            Section::Live(handler) => State::Elements {
                id,
                phase,
                handler,
                first: true,
            },
        };
    }

    fn record<'a>(&mut self, id: u32, phase: Phase, input: &'a [u8]) -> Result<Front<'a>, Stop<LostCause>> {
        let (bytes, record) = self.ram.record(input)?;
        let (at, item) = match record {
            Record::Page(at, content) => (at, Item::Page(at, content)),
            Record::Zero(at) => (at, Item::Zero(at)),
            Record::Foreign(at, whole) => (at, Item::Foreign(at, whole)),
            Record::BlockList(total) => {
                self.ram.begin_blocks(total)?;
                self.state = State::BlockList { id, phase, left: total };
                return Ok(Front::Bytes(bytes));
            }
            Record::MultifdFlush => return Ok(Front::Bytes(bytes)),
            Record::EndOfSection => {
                self.state = State::Footer {
                    id,
                    ends_ram: phase == Phase::End,
                };
                return Ok(Front::Bytes(bytes));
            }
        };
        Ok(Front::Record { bytes, at, item })
    }

    fn footer(&mut self, section: u32, ends_ram: bool, cursor: &mut Cursor<'_>) -> Result<(), Stop<LostCause>> {
        if cursor.peek().u8()? == SECTION_FOOTER {
            cursor.u8()?;
            let footer = cursor.u32()?;
            if footer != section {
                return Err(LostCause::Footer { section, footer }.into());
            }
        }
        self.state = State::Section;
        if ends_ram {
            self.mark = Some(Mark::RamEnd);
            self.state = State::Opaque;
        }
        Ok(())
    }

    fn reach_switchover(&mut self) {
        if !self.switchover {
            self.switchover = true;
            self.mark = Some(Mark::Switchover);
        }
    }

    fn reach_postcopy(&mut self) {
        if !self.postcopy {
            self.postcopy = true;
            self.mark = Some(Mark::Postcopy);
        }
    }
}

/// Reads a START's or FULL's header behind its type byte: the section's id, its `idstr` and its version.
fn section_header<'a>(cursor: &mut Cursor<'a>) -> Result<(u32, &'a [u8], u32), Stop<LostCause>> {
    let id = cursor.u32()?;
    let idstr = cursor.str8()?;
    let _instance = cursor.u32()?;
    let version = cursor.u32()?;
    Ok((id, idstr, version))
}

fn unknown_section(idstr: &[u8]) -> Stop<LostCause> {
    LostCause::UnknownSection(String::from_utf8_lossy(idstr).into_owned()).into()
}
