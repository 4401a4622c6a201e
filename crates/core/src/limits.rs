//! Every bound on what a peer, a guest or a stream can make us allocate or wait for, each beside its reason.

/// Smallest guest page QEMU's stream can carry, bytes: the low ten bits of a RAM record's word are flags.
pub const PAGE_BYTES_MIN: usize = 1024;
/// Largest guest page of any QEMU target, bytes (sparc64 and alpha have 8 KiB; 64 KiB leaves room).
pub const PAGE_BYTES_MAX: usize = 64 * 1024;
/// RAM blocks of one VM. Real machines have 5 to 40: guest RAM, firmware, option ROMs, one per DIMM or device memory.
pub const BLOCKS_MAX: usize = 1024;
/// Bytes of a RAM block's name (QEMU writes it behind one length byte).
pub const BLOCK_NAME_BYTES_MAX: usize = 255;
/// Guest memory that one VM may have, bytes (64 TiB: what a 46-bit physical address reaches).
pub const GUEST_BYTES_MAX: u64 = 1 << 46;

/// Bytes of QEMU's stream in one batch, at the most: the unit that one thread encodes and one frame carries. 512 KiB is four
/// of QEMU's own writes (about 128 KiB each), large enough that a frame's overhead is below 0.1 %.
pub const BATCH_BYTES: usize = 512 * 1024;
/// Where batches are cut on a slow link ([`crate::session::LaneCredit::batch_share`]): what is on its way when the guest stops
/// lengthens the blackout, and that is some batches a lane. Zstandard's blocks are no larger, so it codes these as well.
pub const BATCH_BYTES_LEAST: usize = 128 * 1024;
/// Stream bytes that a batch may stand for after zero runs and references are expanded. A batch of nothing but 9-byte zero
/// records stands for at most this much again, because it was cut from `BATCH_BYTES` of stream.
pub const BATCH_PLAIN_BYTES_MAX: usize = BATCH_BYTES + PAGE_BYTES_MAX + 1024;
/// Payload of a data frame, bytes: a batch that nothing compresses, plus its description.
pub const DATA_FRAME_BYTES_MAX: usize = 2 * BATCH_PLAIN_BYTES_MAX;
/// Payload of a hello or its answer, bytes: who speaks and for what, from peers of which nothing is known yet.
pub const HELLO_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Payload of a control frame, bytes: a VM definition with hundreds of devices, or all reasons of a refusal.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 20;

/// Lanes of one session. Beyond this, one lane per core does not help even on a 100 Gb/s link.
pub const LANES_MAX: usize = 64;
/// Bytes of QEMU's stream that a lane may have sent and not yet seen handed to the target's QEMU, at the most. It bounds what
/// the target buffers: 4 MiB is 13 ms of a quarter of a 10 GbE link, which four lanes share, if nothing compresses.
pub const LANE_CREDIT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What a batch counts for at the least, bytes, wherever batches that wait or are kept are bounded by their bytes. It is about
/// what one takes in memory beside its stream: a batch of a single byte would else be as good as free.
pub const BATCH_CHARGE_BYTES_MIN: u64 = 512;
/// Batches that a lane may have on its way, at the most: its credit in batches that count for the least.
pub const LANE_BATCHES_MAX: u64 = LANE_CREDIT_BYTES_MAX / BATCH_CHARGE_BYTES_MIN;
/// A return-path message of QEMU, bytes of its payload (QEMU's own limit).
pub const RETURN_PATH_PAYLOAD_BYTES_MAX: usize = 512;

const _: () = assert!(
    LANE_CREDIT_BYTES_MAX as usize >= 2 * BATCH_PLAIN_BYTES_MAX,
    "a lane must keep two batches in flight"
);
const _: () = assert!(DATA_FRAME_BYTES_MAX < u32::MAX as usize, "frame lengths are u32");

/// A frame of return-path bytes: one read of the target QEMU's socket.
pub const RETURN_PATH_FRAME_BYTES_MAX: usize = 64 * 1024;

/// JSON values in one message, at the most. Parsed, a value takes up to forty times its bytes; the largest definitions have some
/// thousands.
pub const MESSAGE_VALUES_MAX: usize = 1 << 16;
/// Bytes of messages and return path that wait for a peer to read them, at the most. One that has not read so much answers
/// nobody; its control lane is closed.
pub const UNHEARD_BYTES_MAX: usize = 4 << 20;
/// Bytes of frames that were sent and the peer has not said to have, on one connection, at the most: beyond this the sender waits.
/// Four times what a data lane has credit for, so that one that keeps to it never does.
pub const RESEND_BYTES_MAX: usize = 4 * LANE_CREDIT_BYTES_MAX as usize;
/// Control lanes that no migration has claimed yet, at the most.
pub const UNCLAIMED_LANES_MAX: usize = 64;
/// Connections that the target's end of a tunnel carries, at the most: each takes some threads and a few MiB.
pub const TUNNEL_CONNECTIONS_MAX: usize = 256;
/// Migrations under way to one host, at the most: far more than its memory and links are for.
pub const INCOMING_MAX: usize = 64;

/// How often an agent says something on an otherwise silent control lane.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(1);
/// How long a control lane may be silent before the peer counts as lost, where lost links are not waited for: long enough for a busy
/// host or a blip of the link.
pub const PEER_SILENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// How long it may be silent before another TCP connection is tried, where they are: one that is given up too early costs what was on
/// its way, one that is kept too long waits for the kernel's retransmissions, which come ever more rarely.
pub const LINK_SILENCE: std::time::Duration = std::time::Duration::from_secs(3);
/// The longest that a target waits for a link, whatever the source asks for: the memory that it set aside meanwhile is nobody's.
pub const LINK_PATIENCE_MAX: std::time::Duration = std::time::Duration::from_secs(3600);
/// What is heard on a control lane before it is said that it was, at the latest, bytes: the peer keeps it until then.
pub const HEARD_BYTES: usize = 1 << 20;

/// A frame of a content table: the table of 1 GiB of a guest's memory takes six such.
pub const CONTENT_TABLE_FRAME_BYTES_MAX: usize = 1 << 20;
/// Bytes of all content tables that a target may send: five for each block of about 128 GiB of memory that it kept. Up to about
/// 30 GiB in long runs, 16 GiB where every block lies alone, all blocks have room for the hashes of their pieces, too.
pub const CONTENT_TABLES_BYTES_MAX: usize = 160 << 20;
