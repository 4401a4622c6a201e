//! The coders of a session: a short list that both sides agree on before the first batch. Each batch says by its number in
//! that list which coder its LZ section went through, so a lane can change coder from batch to batch. A coder's history is
//! made of the batches of its lane that went through it, and of no others.

use super::{Codec, CodecSettings, Decode, Encode, LzError};
use serde::{Deserialize, Serialize};

/// The most coders that a session may have: each costs a lane its window on both sides.
pub const CODERS_MAX: usize = 8;

/// Bytes that the windows of all coders of a lane may take together, on each side.
pub const WINDOW_BYTES_MAX: u64 = 1 << 27;

/// The coders that the batches of a session may go through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<CodecSettings>", into = "Vec<CodecSettings>")]
pub struct Coders(Vec<CodecSettings>);

impl Coders {
    /// These, if there is at least one and no more than [`CODERS_MAX`], each can be set up, and their windows together are
    /// within [`WINDOW_BYTES_MAX`].
    pub fn new(coders: Vec<CodecSettings>) -> Result<Self, LzError> {
        if !(1..=CODERS_MAX).contains(&coders.len()) {
            return Err(LzError::Settings("a session has 1 to 8 coders"));
        }
        for coder in &coders {
            coder.validate()?;
        }
        let windows = coders.iter().filter(|coder| coder.codec == Codec::Zstd);
        if windows.map(|coder| 1u64 << coder.window_log).sum::<u64>() > WINDOW_BYTES_MAX {
            return Err(LzError::Settings("the coders' windows take more than 128 MiB a lane"));
        }
        Ok(Self(coders))
    }

    /// What is chosen from when nobody chose: no coding, LZ4, and Zstandard at the levels whose gain over the level before
    /// is worth their time on some link. `coder_costs`, an example of this crate, prints what each of them costs.
    pub fn auto() -> Self {
        let zstd = |level, window_log| CodecSettings {
            codec: Codec::Zstd,
            level,
            window_log,
        };
        let plain = |codec| CodecSettings {
            codec,
            ..CodecSettings::default()
        };
        Self(vec![
            plain(Codec::Raw),
            plain(Codec::Lz4),
            zstd(1, 19),
            zstd(3, 21),
            zstd(6, 21),
            zstd(9, 23),
        ])
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is more than one to choose from.
    pub fn is_choice(&self) -> bool {
        self.len() > 1
    }

    /// All, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &CodecSettings> {
        self.0.iter()
    }

    /// Memory that one lane's encoders take, bytes, at the most.
    pub fn encoder_bytes_max(&self) -> u64 {
        self.iter().map(CodecSettings::encoder_bytes_max).sum()
    }

    /// Memory that one lane's decoders take, bytes, at the most.
    pub fn decoder_bytes_max(&self) -> u64 {
        self.iter().map(CodecSettings::decoder_bytes_max).sum()
    }

    /// The coder of that number.
    pub fn get(&self, number: u8) -> Option<&CodecSettings> {
        self.0.get(usize::from(number))
    }
}

impl Default for Coders {
    /// The default coder alone.
    fn default() -> Self {
        Self(vec![CodecSettings::default()])
    }
}

impl TryFrom<Vec<CodecSettings>> for Coders {
    type Error = LzError;

    fn try_from(coders: Vec<CodecSettings>) -> Result<Self, LzError> {
        Self::new(coders)
    }
}

impl From<Coders> for Vec<CodecSettings> {
    fn from(coders: Coders) -> Self {
        coders.0
    }
}

/// One lane's encoders, each made when it is first used.
pub struct Encoders {
    coders: Coders,
    made: Vec<Option<Box<dyn Encode>>>,
}

impl Encoders {
    /// For a lane of a session with these coders.
    pub fn new(coders: Coders) -> Self {
        let made = coders.iter().map(|_| None).collect();
        Self { coders, made }
    }

    /// Whether the coder of that number leaves bytes as they are.
    pub(in crate::page) fn is_raw(&self, number: u8) -> bool {
        self.coders.get(number).is_some_and(|coder| coder.codec == Codec::Raw)
    }

    /// [`Encode::encode`] by the coder of that number.
    pub(in crate::page) fn encode(&mut self, number: u8, plain: &[&[u8]], out: &mut Vec<u8>) -> Result<(), LzError> {
        made(&self.coders, &mut self.made, number, CodecSettings::encoder)?.encode(plain, out)
    }
}

/// One lane's decoders, each made when a batch first asks for it.
pub struct Decoders {
    coders: Coders,
    made: Vec<Option<Box<dyn Decode>>>,
}

impl Decoders {
    /// For a lane of a session with these coders.
    pub fn new(coders: Coders) -> Self {
        let made = coders.iter().map(|_| None).collect();
        Self { coders, made }
    }

    /// [`Decode::decode`] by the coder of that number.
    pub(in crate::page) fn decode(&mut self, number: u8, input: &[u8], plain: &mut [&mut [u8]]) -> Result<(), LzError> {
        made(&self.coders, &mut self.made, number, CodecSettings::decoder)?.decode(input, plain)
    }
}

/// The coder of that number, made now if it was not there.
fn made<'a, T>(
    coders: &Coders,
    made: &'a mut [Option<T>],
    number: u8,
    make: impl Fn(&CodecSettings) -> Result<T, LzError>,
) -> Result<&'a mut T, LzError> {
    let (Some(settings), Some(place)) = (coders.get(number), made.get_mut(usize::from(number))) else {
        return Err(LzError::Settings(
            "a batch names a coder that the session does not have",
        ));
    };
    match place {
        Some(coder) => Ok(coder),
        None => Ok(place.insert(make(settings)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_cost_too_much_or_nothing_are_refused() {
        let long = CodecSettings {
            window_log: 27,
            ..CodecSettings::default()
        };
        assert!(Coders::new(Vec::new()).is_err());
        assert!(Coders::new(vec![CodecSettings::default(); CODERS_MAX]).is_ok());
        assert!(Coders::new(vec![CodecSettings::default(); CODERS_MAX + 1]).is_err());
        assert!(Coders::new(vec![long]).is_ok());
        assert!(Coders::new(vec![long, CodecSettings::default()]).is_err());
        assert!(Coders::new(vec![CodecSettings { level: 20, ..long }]).is_err());
        assert!(Coders::new(Coders::auto().into()).is_ok());
        assert!(serde_json::from_str::<Coders>("[]").is_err());
    }

    #[test]
    fn each_coder_of_a_lane_has_a_history_of_its_own() {
        let plain: Vec<u8> = (0..20_000u32).flat_map(|n| (n % 700).to_le_bytes()).collect();
        let mut encoders = Encoders::new(Coders::auto());
        let mut decoders = Decoders::new(Coders::auto());
        for number in [2, 0, 3, 1, 2, 3, 3, 0, 1, 4, 5, 2] {
            let (mut coded, mut back) = (Vec::new(), vec![0; plain.len()]);
            encoders.encode(number, &[&plain], &mut coded).unwrap();
            decoders.decode(number, &coded, &mut [&mut back[..]]).unwrap();
            assert!(back == plain, "coder {number}");
        }
        assert!(encoders.encode(6, &[&plain], &mut Vec::new()).is_err());
        assert!(decoders.decode(6, &[], &mut []).is_err());
    }
}
