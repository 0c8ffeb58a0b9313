// SPDX-License-Identifier: Apache-2.0
//! Netlink: messages as bytes both ways, without I/O, and one blocking socket that waits for the
//! kernel's acknowledgement. Used by `route` and `nft`, which know what the messages mean.
//!
//! All numbers are of the machine's byte order unless a function says otherwise.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use thiserror::Error;

/// Flags of requests.
pub const ACK: u16 = 0x4;
pub const DUMP: u16 = 0x300;
pub const REPLACE: u16 = 0x100;
pub const EXCL: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;
const REQUEST: u16 = 0x1;

/// Kinds that netlink itself has.
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 16;
const ERRNO_MAX: i32 = 4095;
/// Largest datagram that is read; the kernel sends dumps in smaller ones.
const READ_BYTES: usize = 64 * 1024;
/// The kernel answers while the request is being sent; more than this is a broken system.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Why the kernel did not do what it was asked.
#[derive(Debug, Error)]
#[error("{doing}: {why}")]
pub struct NetlinkError {
    doing: String,
    #[source]
    why: Why,
}

#[derive(Debug, Error)]
enum Why {
    #[error("{0}{hint}", hint = hint(*.0))]
    Kernel(Errno),
    #[error("no netlink socket: {0}")]
    Socket(#[source] io::Error),
    #[error("the kernel's answer is not netlink")]
    Answer,
}

/// Attributes in the order they are added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs(Vec<u8>);

/// A request. What it is for goes into errors about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub what: String,
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

/// A message from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: u16,
    pub seq: u32,
    pub body: Vec<u8>,
}

/// A socket of the namespace in which it was made.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    seq: u32,
}

// === impl Attrs ===

impl Attrs {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // A value that does not fit is a bug of ours; the kernel refuses the cut one.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// With the zero byte that the kernel expects.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    #[must_use]
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In network byte order, as nf_tables has it.
    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    #[must_use]
    pub fn nest(self, kind: u16, inner: &Attrs) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Bytes between attributes, such as the header that a veth's peer begins with.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Attributes of a message, until its end or the first that is cut.
pub fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (kind, _) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & KIND_MASK, value))
    })
}

/// The number in an attribute of four bytes.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// The text in an attribute.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

// === impl Message ===

impl Message {
    /// `header` is that of the family, such as `ifinfomsg`.
    pub fn new(
        what: impl Into<String>,
        kind: u16,
        flags: u16,
        header: &[u8],
        attrs: &Attrs,
    ) -> Self {
        Self { what: what.into(), kind, flags, body: [header, &attrs.0].concat() }
    }

    #[must_use]
    pub fn with(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// The bytes of a request with this number.
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + self.body.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(HEADER_BYTES + self.body.len());
        out.extend(length.to_ne_bytes());
        out.extend(self.kind.to_ne_bytes());
        out.extend((self.flags | REQUEST).to_ne_bytes());
        out.extend(seq.to_ne_bytes());
        out.extend(0_u32.to_ne_bytes());
        out.extend(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }
}

/// The messages of one datagram; `None` when it is no netlink.
pub fn answers(mut bytes: &[u8]) -> Option<Vec<Answer>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (_flags, rest) = rest.split_first_chunk::<2>()?;
        let (seq, _) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let body = bytes.get(HEADER_BYTES..length)?.to_vec();
        out.push(Answer { kind: u16::from_ne_bytes(*kind), seq: u32::from_ne_bytes(*seq), body });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(out)
}

impl Answer {
    /// What an acknowledgement says: `None` when this is none, `Some(None)` when all is well.
    fn verdict(&self) -> Option<Option<Errno>> {
        if self.kind != ERROR && self.kind != DONE {
            return None;
        }
        let code = self.body.split_first_chunk().map_or(0, |(code, _)| i32::from_ne_bytes(*code));
        Some(match code.saturating_neg() {
            0 => None,
            number @ 1..=ERRNO_MAX => Some(Errno::from_raw_os_error(number)),
            // No error that the kernel has.
            _ => Some(Errno::IO),
        })
    }
}

// === impl Netlink ===

impl Netlink {
    /// Links, addresses, routes.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(None)
    }

    /// nf_tables.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, NetlinkError> {
        let open = || {
            let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
            let fd = rustix::net::socket_with(family, SocketType::RAW, flags, protocol)?;
            rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
            set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_MAX))?;
            Ok(fd)
        };
        match open() {
            Ok(fd) => Ok(Self { fd, seq: 0 }),
            Err(e @ Errno::PROTONOSUPPORT) => {
                Err(failed("opening netlink (is the kernel built with nf_tables?)", Why::Kernel(e)))
            }
            Err(e) => Err(failed("opening netlink", Why::Kernel(e))),
        }
    }

    /// Asks for one thing and waits until it is done.
    ///
    /// # Errors
    /// With the message's own words, when the kernel refuses.
    pub fn ask(&mut self, message: Message) -> Result<(), NetlinkError> {
        self.batch(&[message.with(ACK)])
    }

    /// Sends messages at once; done when the last that asks for an acknowledgement has got it.
    ///
    /// # Errors
    /// With the words of the message that the kernel refused.
    pub fn batch(&mut self, messages: &[Message]) -> Result<(), NetlinkError> {
        let first = self.seq.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut last = first;
        for message in messages {
            self.seq = self.seq.wrapping_add(1);
            bytes.extend(message.encode(self.seq));
            if message.flags & ACK != 0 {
                last = self.seq;
            }
        }
        let named = |seq: u32| {
            let at = usize::try_from(seq.wrapping_sub(first)).unwrap_or(usize::MAX);
            messages.get(at).map_or("a change of the network", |m| m.what.as_str())
        };
        self.send(&bytes).map_err(|why| failed(named(first), why))?;
        loop {
            for answer in self.receive().map_err(|why| failed(named(first), why))? {
                let ours = answer.seq.wrapping_sub(first) <= last.wrapping_sub(first);
                match answer.verdict() {
                    Some(Some(errno)) if ours => {
                        return Err(failed(named(answer.seq), Why::Kernel(errno)));
                    }
                    Some(None) if answer.seq == last => return Ok(()),
                    // An answer to what was asked before and given up.
                    _ => {}
                }
            }
        }
    }

    /// Asks for a list.
    ///
    /// # Errors
    /// With the message's own words, when the kernel refuses.
    pub fn list(&mut self, message: Message) -> Result<Vec<Answer>, NetlinkError> {
        self.answers_to(&message.with(DUMP))
    }

    /// Asks about one thing.
    ///
    /// # Errors
    /// With the message's own words, when the kernel refuses or there is no such thing.
    pub fn get(&mut self, message: Message) -> Result<Vec<Answer>, NetlinkError> {
        self.answers_to(&message.with(ACK))
    }

    fn answers_to(&mut self, message: &Message) -> Result<Vec<Answer>, NetlinkError> {
        self.seq = self.seq.wrapping_add(1);
        let told = |why| failed(&message.what, why);
        self.send(&message.encode(self.seq)).map_err(told)?;
        let mut out = Vec::new();
        loop {
            for answer in self.receive().map_err(told)? {
                if answer.seq != self.seq || answer.kind == NOOP {
                    continue;
                }
                match answer.verdict() {
                    None => out.push(answer),
                    Some(None) => return Ok(out),
                    Some(Some(errno)) => return Err(told(Why::Kernel(errno))),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Why> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))
            .map(drop)
            .map_err(Why::Kernel)
    }

    fn receive(&self) -> Result<Vec<Answer>, Why> {
        let mut buffer = vec![0; READ_BYTES];
        let (_, n) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.fd, buffer.as_mut_slice(), RecvFlags::TRUNC)
        })
        .map_err(|e| Why::Socket(e.into()))?;
        buffer.get(..n).and_then(answers).ok_or(Why::Answer)
    }
}

// === impl NetlinkError ===

impl NetlinkError {
    /// What the kernel said, when it was the kernel.
    pub fn errno(&self) -> Option<Errno> {
        match self.why {
            Why::Kernel(errno) => Some(errno),
            _ => None,
        }
    }

    /// An error before the kernel was asked.
    pub(super) fn before(doing: impl Into<String>, error: io::Error) -> Self {
        Self { doing: doing.into(), why: Why::Socket(error) }
    }

    /// An answer of the kernel's that was not netlink's.
    pub(super) fn kernel(doing: impl Into<String>, errno: Errno) -> Self {
        Self { doing: doing.into(), why: Why::Kernel(errno) }
    }
}

fn failed(doing: &str, why: Why) -> NetlinkError {
    NetlinkError { doing: doing.to_owned(), why }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "; it needs CAP_NET_ADMIN over the network namespace",
        Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => {
            "; this kernel is built without it or may not load its module"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_the_kernel_documents() {
        let inner = Attrs::new().u8(1, 7);
        let attrs = Attrs::new().text(3, "lo").nest(18, &inner).be32(2, 1);
        let bytes = Message::new("a test", 16, CREATE, &[1, 2, 3, 4], &attrs).encode(9);
        let words = |v: &[u32]| v.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>();
        let halves = |v: &[u16]| v.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>();
        let expected = [
            words(&[48]),
            halves(&[16, CREATE | REQUEST]),
            words(&[9, 0]),
            vec![1, 2, 3, 4],
            // A text with its zero byte, made up to four.
            halves(&[7, 3]),
            b"lo\0\0".to_vec(),
            halves(&[12, 18 | NESTED, 5, 1]),
            vec![7, 0, 0, 0],
            halves(&[8, 2]),
            vec![0, 0, 0, 1],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn what_is_cut_or_garbage_is_no_answer_and_disturbs_nobody() {
        let attrs_of = |body: &[u8]| attrs(body).map(|(k, v)| (k, v.to_vec())).collect::<Vec<_>>();
        let body = Attrs::new().u32(4, 1500).text(3, "eth0");
        let bytes = Message::new("a test", 16, 0, &[], &body).encode(1);
        let whole = answers(&bytes).unwrap();
        assert_eq!((whole.len(), whole[0].kind, whole[0].seq), (1, 16, 1));
        let read = attrs_of(&whole[0].body);
        assert_eq!(number(&read[0].1), Some(1500));
        assert_eq!(text(&read[1].1), "eth0");
        for cut in 1..bytes.len() - 3 {
            assert_eq!(answers(&bytes[..cut]), None, "{cut}");
        }
        for cut in 0..body.0.len() {
            assert!(attrs_of(&body.0[..cut]).len() < 2 || cut > body.0.len() - 4, "{cut}");
        }
        for byte in 0..=u8::MAX {
            for length in 0..40 {
                let garbage = vec![byte; length];
                drop((answers(&garbage), attrs_of(&garbage)));
            }
        }
    }

    #[test]
    fn only_acknowledgements_have_a_verdict() {
        let of =
            |kind, code: i32| Answer { kind, seq: 1, body: code.to_ne_bytes().to_vec() }.verdict();
        assert_eq!(of(16, -1), None);
        assert_eq!(of(ERROR, 0), Some(None));
        assert_eq!(of(DONE, 0), Some(None));
        assert_eq!(of(ERROR, -17), Some(Some(Errno::EXIST)));
        assert_eq!(of(ERROR, i32::MIN), Some(Some(Errno::IO)));
        assert_eq!(of(ERROR, 17), Some(Some(Errno::IO)));
    }
}
