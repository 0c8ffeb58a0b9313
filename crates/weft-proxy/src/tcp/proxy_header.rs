// SPDX-License-Identifier: Apache-2.0
//! The header of the PROXY protocol, versions 1 and 2: read where a listener takes it, written
//! where a backend wants it. Called by `accept` and `relay`. Reading is strict: what is not exactly
//! as the specification says closes the connection, since somebody's address depends on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use weft_base::limits::{PROXY_HEADER_BYTES_MAX, SNIFF_MS_MAX};
use weft_model::{ProxyHeader, ProxyVersion};

use super::prefixed::Prefixed;
use crate::guards;

/// What a header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What one of version 1 begins with, and its longest form, `\r\n` included.
const LINE: &[u8; 6] = b"PROXY ";
const LINE_BYTES_MAX: usize = 107;
/// Bytes of version 2 before its addresses.
const FIXED: usize = 16;
const CHECKSUM: u8 = 0x03;

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Not before there are so many bytes.
    More(usize),
    /// Another protocol.
    Absent,
    Wrong(&'static str),
    /// A header of so many bytes. Without addresses the connection itself says who the client is.
    Header {
        length: usize,
        client: Option<(SocketAddr, SocketAddr)>,
    },
}

/// Reads the header. Returns the client's address and the one that it dialled, where the header
/// tells them, and the stream behind it.
///
/// # Errors
/// Why the connection must be closed.
pub async fn read<I>(
    io: I,
    header: ProxyHeader,
    limit: Duration,
) -> Result<(Option<(SocketAddr, SocketAddr)>, Prefixed<I>), &'static str>
where
    I: AsyncRead + Unpin,
{
    let (mut io, mut seen) = (io, BytesMut::new());
    let reading = async {
        if header == ProxyHeader::Optional && silent(&mut io, &mut seen).await {
            return Ok(None);
        }
        loop {
            let wanted = match judge(&seen) {
                Judged::Header { length, client } => {
                    drop(seen.split_to(length));
                    return Ok(client);
                }
                Judged::Absent if header == ProxyHeader::Optional => return Ok(None),
                Judged::Absent => return Err("it has no header of the PROXY protocol"),
                Judged::Wrong(why) => return Err(why),
                Judged::More(wanted) => wanted,
            };
            while seen.len() < wanted {
                // What is read beyond it comes first out of the stream returned.
                seen.reserve(wanted.saturating_sub(seen.len()).max(128));
                match io.read_buf(&mut seen).await {
                    Ok(n) if n > 0 => {}
                    _ => return Err("it ended within the header of the PROXY protocol"),
                }
            }
        }
    };
    let read = tokio::time::timeout(limit, reading).await;
    let client = read.unwrap_or(Err("the header of the PROXY protocol took too long"))?;
    Ok((client, Prefixed::new(seen.freeze(), io)))
}

/// Whether a client says nothing for a while: who need not send a header may wait for a greeting.
async fn silent<I: AsyncRead + Unpin>(io: &mut I, seen: &mut BytesMut) -> bool {
    seen.reserve(128);
    let first = tokio::time::timeout(Duration::from_millis(SNIFF_MS_MAX), io.read_buf(seen)).await;
    !matches!(first, Ok(Ok(n)) if n > 0)
}

/// Judges the bytes at hand.
pub fn judge(seen: &[u8]) -> Judged {
    if seen.starts_with(SIGNATURE) {
        return binary(seen);
    }
    if seen.starts_with(LINE) {
        return line(seen);
    }
    let may_become = |start: &[u8]| start.starts_with(seen);
    match (may_become(LINE), may_become(SIGNATURE)) {
        // Byte by byte at first: optional headers must not wait for bytes that never come.
        (true, _) | (_, true) => Judged::More(seen.len() + 1),
        _ => Judged::Absent,
    }
}

/// The header of a connection that is the proxy's own, made for no client.
pub fn own(version: ProxyVersion) -> Bytes {
    match version {
        ProxyVersion::V1 => Bytes::from_static(b"PROXY UNKNOWN\r\n"),
        // LOCAL, without addresses.
        ProxyVersion::V2 => Bytes::from_static(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    }
}

/// The header for a backend.
pub fn written(version: ProxyVersion, client: SocketAddr, dialled: SocketAddr) -> Bytes {
    let (from, to) = (client.ip().to_canonical(), dialled.ip().to_canonical());
    match version {
        ProxyVersion::V1 => {
            let (family, from, to) = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => ("TCP4", from.to_string(), to.to_string()),
                _ => ("TCP6", wide(from).to_string(), wide(to).to_string()),
            };
            let (source, target) = (client.port(), dialled.port());
            format!("PROXY {family} {from} {to} {source} {target}\r\n").into()
        }
        ProxyVersion::V2 => {
            let mut out = Vec::with_capacity(FIXED + 36);
            out.extend_from_slice(SIGNATURE);
            let wrong = u8::from(!guards::on("proxy-written"));
            match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    out.extend_from_slice(&[0x21, 0x11, 0, 12 + wrong]);
                    out.extend_from_slice(&from.octets());
                    out.extend_from_slice(&to.octets());
                }
                _ => {
                    out.extend_from_slice(&[0x21, 0x21, 0, 36 + wrong]);
                    out.extend_from_slice(&wide(from).octets());
                    out.extend_from_slice(&wide(to).octets());
                }
            }
            out.extend_from_slice(&client.port().to_be_bytes());
            out.extend_from_slice(&dialled.port().to_be_bytes());
            out.into()
        }
    }
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

// === version 1 ===

fn line(seen: &[u8]) -> Judged {
    const WRONG: Judged = Judged::Wrong("the line of the PROXY protocol is malformed");
    let head = seen.get(..LINE_BYTES_MAX).unwrap_or(seen);
    let Some(end) = head.windows(2).position(|w| w == b"\r\n") else {
        let full = head.len() == LINE_BYTES_MAX || head.contains(&b'\n');
        return if full { WRONG } else { Judged::More(seen.len() + 1) };
    };
    let length = end + 2;
    let Some(text) = head.get(LINE.len()..end).and_then(|t| std::str::from_utf8(t).ok()) else {
        return WRONG;
    };
    // A sender that does not know writes what it likes behind this word.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Judged::Header { length, client: None };
    }
    let parts: Vec<&str> = text.split(' ').collect();
    let [family, from, to, source, target] = parts[..] else { return WRONG };
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        let ip = match family {
            "TCP4" => IpAddr::V4(ip.parse::<Ipv4Addr>().ok()?),
            "TCP6" => IpAddr::V6(ip.parse::<Ipv6Addr>().ok()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip.to_canonical(), decimal(port)?))
    };
    match (address(from, source), address(to, target)) {
        (Some(from), Some(to)) => Judged::Header { length, client: Some((from, to)) },
        _ => WRONG,
    }
}

/// No sign, no leading zero.
fn decimal(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

// === version 2 ===

fn binary(seen: &[u8]) -> Judged {
    let Some([version, family, high, low]) = seen.get(12..FIXED) else {
        return Judged::More(FIXED);
    };
    let body = usize::from(u16::from_be_bytes([*high, *low]));
    let length = FIXED + body;
    let local = match version {
        0x20 => true,
        0x21 => false,
        _ => return Judged::Wrong("the PROXY protocol's version or command is unknown"),
    };
    if length > PROXY_HEADER_BYTES_MAX && guards::on("proxy-bytes") {
        return Judged::Wrong("the header of the PROXY protocol is too long");
    }
    let Some(body) = seen.get(FIXED..length) else { return Judged::More(length) };
    if local {
        return Judged::Header { length, client: None };
    }
    let addresses = match family {
        // Unspecified; what follows is skipped as a whole.
        0x00 => return Judged::Header { length, client: None },
        0x11 => 12,
        0x21 => 36,
        // Unix sockets, which have no address of use here.
        0x31 => 216,
        _ => return Judged::Wrong("the PROXY protocol's family is none of a byte stream"),
    };
    let Some((addresses, extras)) = body.split_at_checked(addresses) else {
        return Judged::Wrong("the PROXY protocol's length is too short for its addresses");
    };
    if let Err(why) = judge_extras(extras, seen.get(..length).unwrap_or_default()) {
        return Judged::Wrong(why);
    }
    Judged::Header { length, client: client(addresses) }
}

/// Source and destination as they stand in version 2.
fn client(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
    let (from, to, ports) = match bytes.len() {
        12 => (v4(0)?, v4(4)?, 8),
        36 => (v6(0)?, v6(16)?, 32),
        _ => return None,
    };
    let at = |ip: IpAddr, at: usize| Some(SocketAddr::new(ip.to_canonical(), port(at)?));
    Some((at(from, ports)?, at(to, ports + 2)?))
}

/// What follows the addresses must fill the rest to the byte; a checksum must hold.
fn judge_extras(mut extras: &[u8], header: &[u8]) -> Result<(), &'static str> {
    const WRONG: &str = "the PROXY protocol's extras do not fill its length";
    if !guards::on("proxy-extras") {
        return Ok(());
    }
    while !extras.is_empty() {
        let [kind, high, low, rest @ ..] = extras else { return Err(WRONG) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(WRONG)?;
        if *kind == CHECKSUM {
            let told = value.try_into().map(u32::from_be_bytes).ok();
            let at = header.len().saturating_sub(rest.len() + 4);
            if told != Some(checksum(header, at)) {
                return Err("the PROXY protocol's checksum does not hold");
            }
        }
        extras = rest;
    }
    Ok(())
}

/// CRC-32C of the header with the checksum's own four bytes as zero.
fn checksum(header: &[u8], at: usize) -> u32 {
    let mut crc = !0u32;
    for (i, byte) in header.iter().enumerate() {
        let byte = if (at..at + 4).contains(&i) { 0 } else { *byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests;
