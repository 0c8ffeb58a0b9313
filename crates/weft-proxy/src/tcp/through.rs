// SPDX-License-Identifier: Apache-2.0
//! Bytes through another proxy: `CONNECT` (RFC 9110, section 9.3.6) in HTTP/1.1, on a connection
//! that is open already. What follows the answer's head is the far side's own. Called by the relay;
//! requests of HTTP are never sent so.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft_model::decide::Authority;
use weft_model::{Through, ThroughMethod};

use super::socket::Socket;
use crate::upstream::connect::ConnectError;
use crate::upstream::pool::GRANT_EXTRA;

/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const END: &[u8] = b"\r\n\r\n";

/// Where bytes go in the end.
struct Target(String, u16);

/// Asks for a tunnel to a policy's target; `address` is the proxy's that is asked. Not
/// cancel-safe: what was begun is of no use.
///
/// # Errors
/// When there is none within `limit` and what the proxy itself needs to connect.
pub async fn ask<I: Socket>(
    io: &mut I,
    through: &Through,
    address: SocketAddr,
    limit: Duration,
) -> Result<(), ConnectError> {
    let failed = |reason: String| ConnectError::Tcp { address, reason: reason.into() };
    let target = Target::of(through).map_err(failed)?;
    let asking = async {
        let head = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
        io.write_all(head.as_bytes()).await?;
        io.flush().await?;
        granted(io).await
    };
    let patience = limit.saturating_add(GRANT_EXTRA);
    let asked = tokio::time::timeout(patience, asking).await;
    let ms = patience.as_millis();
    match asked.map_err(|_| failed(format!("it left a CONNECT unanswered for {ms} ms")))? {
        Ok(200..300) => Ok(()),
        Ok(status) => Err(ConnectError::Tunnel { address, status, said: "".into() }),
        Err(error) => Err(failed(format!("it was asked for a tunnel to {target}: {error}"))),
    }
}

/// The status of the answer that is none of those before it (1xx).
async fn granted<I: Socket>(io: &mut I) -> io::Result<u16> {
    loop {
        let head = head(io).await?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "its answer is no HTTP/1");
        let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| {
            let text = str::from_utf8(rest.get(2..5)?).ok()?;
            let ends = matches!(rest.get(5), Some(b' ' | b'\r'));
            text.parse::<u16>().ok().filter(|n| ends && (100..600).contains(n))
        });
        match status.ok_or_else(wrong)? {
            100..200 => {}
            status => return Ok(status),
        }
    }
}

/// Reads up to the end of a head and no byte more.
async fn head<I: Socket>(io: &mut I) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(END) {
        if head.len() >= HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
        }
        let more = match io.socket() {
            Some(socket) => {
                let mut seen = [0; 1024];
                let n = socket.peek(&mut seen).await?;
                up_to_end(&head, seen.get(..n).unwrap_or_default())
            }
            // What is decrypted already is read out of memory.
            None => 1,
        };
        let from = head.len();
        head.resize(from + more.max(1), 0);
        io.read_exact(head.get_mut(from..).unwrap_or_default()).await?;
    }
    Ok(head)
}

/// How many of the bytes that come next belong to a head.
fn up_to_end(head: &[u8], next: &[u8]) -> usize {
    let tail = head.len().saturating_sub(END.len() - 1);
    let mut joined = head.get(tail..).unwrap_or_default().to_vec();
    let kept = joined.len();
    joined.extend_from_slice(next);
    let end = joined.windows(END.len()).position(|window| window == END);
    end.map_or(next.len(), |at| at + END.len() - kept)
}

// === impl Target ===

impl Target {
    fn of(through: &Through) -> Result<Self, String> {
        if through.method == ThroughMethod::Post {
            return Err(
                "tunnels by POST are not spoken; let the tunnel's protocol be CONNECT".into()
            );
        }
        let (host, port) = (&*through.host, through.port);
        let named = match host.parse::<IpAddr>() {
            Ok(ip) => Some(ip.to_string()),
            Err(_) => Authority::parse(host).filter(|a| a.port.is_none()).map(|a| a.host),
        };
        match named.filter(|_| port > 0) {
            Some(host) => Ok(Self(host, port)),
            None => Err(format!("{host:?} port {port} is no target of a tunnel")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn to(host: &str) -> Through {
        Through { host: host.into(), port: 443, method: ThroughMethod::Connect }
    }

    const SOON: Duration = Duration::from_secs(10);

    /// What is made of an answer, and what of it is left to the far side.
    async fn answered(parts: &'static [&'static str]) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let wanted = "CONNECT api.example:443 HTTP/1.1\r\nhost: api.example:443\r\n\r\n";
            let mut got = vec![0; wanted.len()];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(String::from_utf8(got).unwrap(), wanted);
            for part in parts {
                stream.write_all(part.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let asked = ask(&mut stream, &to("api.example"), address, SOON).await;
            let mut rest = String::new();
            let _ = stream.read_to_string(&mut rest).await;
            (asked.map_err(|error| error.to_string()), rest)
        };
        tokio::join!(client, proxy).0
    }

    #[tokio::test]
    async fn bytes_behind_the_answer_are_the_far_sides() {
        for parts in [
            &["HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\n220 hello"][..],
            &["HTTP/1.0 200\r\n\r", "\n", "220 hello"],
            &["HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 OK\r\n\r\n220", " hello"],
        ] {
            assert_eq!(answered(parts).await, (Ok(()), "220 hello".to_owned()), "{parts:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_grant_is_no_tunnel() {
        for (parts, why) in [
            (&["HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"][..], "status 407"),
            (&["HTTP/1.1 301 Moved\r\n\r\n"], "status 301"),
            (&["SSH-2.0-x\r\n\r\n"], "is no HTTP/1"),
            (&["HTTP/1.1 2000 OK\r\n\r\n"], "is no HTTP/1"),
            (&["HTTP/1.1 200 OK\r\n"], "asked for a tunnel to api.example:443"),
        ] {
            let said = answered(parts).await.0.unwrap_err();
            assert!(said.contains(why), "{why:?} in {said}");
        }
    }

    #[tokio::test]
    async fn who_never_ends_its_answer_is_given_up_and_nothing_odd_is_asked_for() {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(&[b'x'; 2 * HEAD_BYTES_MAX]).await.unwrap();
        let address = "127.0.0.1:3128".parse().unwrap();
        let said = ask(&mut near, &to("a.example"), address, SOON).await.unwrap_err().to_string();
        assert!(said.contains("has no end"), "{said}");
        for host in ["", "a b", "a\r\nx: y", "a:80", "a/b"] {
            let said = ask(&mut near, &to(host), address, SOON).await.unwrap_err().to_string();
            assert!(said.contains("is no target of a tunnel"), "{said}");
        }
        let post = Through { method: ThroughMethod::Post, ..to("a.example") };
        let said = ask(&mut near, &post, address, SOON).await.unwrap_err().to_string();
        assert!(said.contains("by POST"), "{said}");
        assert_eq!(Target::of(&to("::1")).unwrap().to_string(), "[::1]:443");
    }
}
