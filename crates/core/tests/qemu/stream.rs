//! Writes migration streams as QEMU does, with what a parser must see in them, and follows them in pieces of any size.

use vmferry_core::qemu::{BlockId, Item, Mark, PageAt, Parser};

/// What a parser hands out, without bytes: those are compared by writing the stream again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Page(PageAt),
    Zero(PageAt),
    Foreign(PageAt),
    Mark(Mark),
}

/// An event, and how many bytes of the stream stood before it.
pub(crate) type At = (u64, Event);

/// A stream under construction.
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
    /// What a parser must see.
    pub(crate) events: Vec<At>,
    /// Machine types of QEMU 2.3 and before write no section footers.
    pub(crate) footers: bool,
    switched: bool,
    postcopy: bool,
}

pub(crate) const RAM: u32 = 2;
pub(crate) const PAGE: u64 = 4096;
/// The blocks of a `started` stream, with their pages.
pub(crate) const BLOCKS: [(&str, u64); 3] = [("pc.ram", 16), ("/rom@etc/acpi/tables", 2), ("pc.bios", 1)];

pub(crate) fn str8(text: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(text.len()).expect("a name of at most 255 bytes")];
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

pub(crate) fn subsection(name: &str, fields: &[u8]) -> Vec<u8> {
    [&[0x05], str8(name).as_slice(), &1u32.to_be_bytes(), fields].concat()
}

/// A stream up to the end of RAM's SECTION_START.
pub(crate) fn started() -> Stream {
    let mut stream = Stream::new(&[]);
    stream.start_ram(PAGE, &BLOCKS);
    stream
}

impl Stream {
    /// The header, and a configuration section with these subsections.
    pub(crate) fn new(subsections: &[Vec<u8>]) -> Self {
        let mut stream = Self::without_configuration();
        stream.put(b"\x07\x00\x00\x00\x0epc-i440fx-10.0");
        for subsection in subsections {
            stream.put(subsection);
        }
        stream
    }

    pub(crate) fn without_configuration() -> Self {
        let bytes = b"QEVM\0\0\0\x03".to_vec();
        Self {
            bytes,
            events: Vec::new(),
            footers: true,
            switched: false,
            postcopy: false,
        }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.events.push((self.bytes.len() as u64, event));
    }

    pub(crate) fn command(&mut self, command: u16, payload: &[u8]) {
        self.put(&[0x08]);
        self.put(&command.to_be_bytes());
        self.put(&u16::try_from(payload.len()).expect("a short payload").to_be_bytes());
        self.put(payload);
    }

    /// SWITCHOVER_START.
    pub(crate) fn switchover_start(&mut self) {
        self.command(11, &[]);
        self.switch_over();
    }

    /// POSTCOPY_RAM_DISCARD.
    pub(crate) fn discard(&mut self, payload: &[u8]) {
        self.put(&[0x08, 0, 6]);
        self.put(&u16::try_from(payload.len()).expect("a short payload").to_be_bytes());
        self.mark_postcopy();
        self.put(payload);
    }

    /// PACKAGED.
    pub(crate) fn packaged(&mut self, package: &[u8]) {
        self.command(7, &u32::try_from(package.len()).expect("a short package").to_be_bytes());
        self.mark_postcopy();
        self.put(package);
    }

    pub(crate) fn start(&mut self, id: u32, idstr: &str, version: u32) {
        self.section_header(0x01, id, idstr, version);
    }

    pub(crate) fn full(&mut self, id: u32, idstr: &str, version: u32) {
        self.section_header(0x04, id, idstr, version);
    }

    pub(crate) fn part(&mut self, id: u32) {
        self.put(&[0x02]);
        self.put(&id.to_be_bytes());
    }

    pub(crate) fn end(&mut self, id: u32) {
        self.put(&[0x03]);
        self.put(&id.to_be_bytes());
        if id == RAM {
            self.switch_over();
        }
    }

    pub(crate) fn footer(&mut self, id: u32) {
        if self.footers {
            self.put(&[0x7e]);
            self.put(&id.to_be_bytes());
        }
    }

    /// RAM's SECTION_START with a plain block list.
    pub(crate) fn start_ram(&mut self, page_bytes: u64, blocks: &[(&str, u64)]) {
        self.start(RAM, "ram", 4);
        self.word(blocks.iter().map(|(_, pages)| pages * page_bytes).sum(), 0x004);
        for (name, pages) in blocks {
            self.put(&str8(name));
            self.put(&(pages * page_bytes).to_be_bytes());
        }
        self.event(Event::Mark(Mark::Blocks));
        self.end_of_ram_section();
    }

    pub(crate) fn word(&mut self, offset: u64, flags: u64) {
        self.put(&(offset | flags).to_be_bytes());
    }

    /// The word of a page's record and, unless `name` is `None`, the block's name.
    pub(crate) fn record(&mut self, flags: u64, offset: u64, name: Option<&str>) {
        match name {
            Some(name) => {
                self.word(offset, flags);
                self.put(&str8(name));
            }
            None => self.word(offset, flags | 0x020),
        }
    }

    pub(crate) fn page(&mut self, block: u16, offset: u64, name: Option<&str>, content: &[u8]) {
        self.event(Event::Page(PageAt {
            block: BlockId(block),
            offset,
            named: name.is_some(),
        }));
        self.record(0x008, offset, name);
        self.put(content);
    }

    pub(crate) fn zero(&mut self, block: u16, offset: u64, name: Option<&str>) {
        self.event(Event::Zero(PageAt {
            block: BlockId(block),
            offset,
            named: name.is_some(),
        }));
        self.record(0x002, offset, name);
        self.put(&[0]);
    }

    pub(crate) fn xbzrle(&mut self, block: u16, offset: u64, name: Option<&str>, delta: &[u8]) {
        self.event(Event::Foreign(PageAt {
            block: BlockId(block),
            offset,
            named: name.is_some(),
        }));
        self.record(0x040, offset, name);
        self.put(&[1]);
        self.put(&u16::try_from(delta.len()).expect("less than a page").to_be_bytes());
        self.put(delta);
    }

    pub(crate) fn compressed(&mut self, block: u16, offset: u64, name: Option<&str>, zlib: &[u8]) {
        self.event(Event::Foreign(PageAt {
            block: BlockId(block),
            offset,
            named: name.is_some(),
        }));
        self.record(0x100, offset, name);
        self.put(&u32::try_from(zlib.len()).expect("about a page").to_be_bytes());
        self.put(zlib);
    }

    pub(crate) fn multifd_flush(&mut self) {
        self.word(0, 0x200);
    }

    pub(crate) fn end_of_ram_section(&mut self) {
        self.word(0, 0x010);
        self.footer(RAM);
    }

    /// Ends RAM's SECTION_END and sends a device tail.
    pub(crate) fn end_of_ram(&mut self, tail: &[u8]) {
        self.end_of_ram_section();
        self.event(Event::Mark(Mark::RamEnd));
        self.put(tail);
    }

    fn section_header(&mut self, kind: u8, id: u32, idstr: &str, version: u32) {
        self.put(&[kind]);
        self.put(&id.to_be_bytes());
        self.put(&str8(idstr));
        self.put(&0u32.to_be_bytes());
        self.put(&version.to_be_bytes());
    }

    fn switch_over(&mut self) {
        if !self.switched {
            self.switched = true;
            self.event(Event::Mark(Mark::Switchover));
        }
    }

    fn mark_postcopy(&mut self) {
        if !self.postcopy {
            self.postcopy = true;
            self.event(Event::Mark(Mark::Postcopy));
        }
    }
}

/// What came of following a stream.
pub(crate) struct Followed {
    pub(crate) parser: Parser,
    pub(crate) events: Vec<At>,
    /// All items' bytes, written again, and those that the parser waited for more behind.
    pub(crate) written: Vec<u8>,
}

/// Follows `stream`, read in pieces of the given sizes, over and over.
pub(crate) fn follow(stream: &[u8], pieces: &[usize]) -> Followed {
    let mut parser = Parser::new();
    let mut events = Vec::new();
    let mut written = Vec::new();
    let mut front = 0;
    let mut read = 0;
    for piece in pieces.iter().cycle() {
        while let Some((bytes, item)) = parser.next(&stream[front..read]) {
            let event = match &item {
                Item::Bytes(bytes) => {
                    assert!(!bytes.is_empty(), "an item of no bytes is no progress");
                    None
                }
                Item::Page(at, _) => Some(Event::Page(*at)),
                Item::Zero(at) => Some(Event::Zero(*at)),
                Item::Foreign(at, _) => Some(Event::Foreign(*at)),
                Item::Mark(mark) => Some(Event::Mark(mark.clone())),
            };
            events.extend(event.map(|event| (front as u64, event)));
            item.write(parser.blocks(), &mut written);
            front += bytes;
            assert_eq!(parser.position(), front as u64);
        }
        assert!(
            read - front < parser.page_bytes() + 1024,
            "it waits for more than a page and 1 KiB"
        );
        if read == stream.len() {
            break;
        }
        read = stream.len().min(read + piece);
    }
    written.extend_from_slice(&stream[front..]);
    Followed {
        parser,
        events,
        written,
    }
}
