// SPDX-License-Identifier: Apache-2.0
//! What every shop service takes from its command line and environment. Flags win over the
//! environment. Called by the programs in `bin/`; reads nothing itself, clap does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Settings that all three services share.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// SQLite file of this service; replicas of one service share it.
    #[arg(long, env = "DATABASE", value_name = "FILE")]
    pub database: PathBuf,

    /// Address to listen on.
    #[arg(long, env = "POD_IP", default_value = "127.0.0.1", value_parser = parse_ip)]
    pub listen: IpAddr,

    /// HTTP port; 0 takes any free one.
    #[arg(long, env = "PORT", default_value_t = 0)]
    pub port: u16,

    /// Name of this instance, shown in answers.
    #[arg(long, env = "POD_NAME", default_value = "", hide_default_value = true)]
    pub instance: String,

    /// Version of this instance, shown in answers.
    #[arg(long = "service-version", id = "service_version", env = "VERSION", default_value = "v1")]
    pub version: String,

    /// How long to go on accepting requests after SIGTERM, while callers look elsewhere.
    #[arg(long, env = "DRAIN_MS", default_value = "300", value_parser = parse_millis)]
    pub drain: Duration,
}

impl Common {
    /// Where HTTP listens.
    pub fn http_addr(&self) -> SocketAddr {
        SocketAddr::new(self.listen, self.port)
    }
}

/// An address; an empty variable means it is not set.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    if text.is_empty() {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    text.parse().map_err(|_| format!("'{text}' is not an IP address, such as 127.0.0.1"))
}

/// Whole milliseconds.
pub fn parse_millis(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(Duration::from_millis)
        .map_err(|_| format!("'{text}' is not a number of milliseconds, such as 500"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_address_is_loopback_and_a_bad_one_is_named() {
        assert_eq!(parse_ip(""), Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(parse_ip("localhost").is_err_and(|e| e.contains("'localhost'")));
        assert!(parse_millis("1s").is_err_and(|e| e.contains("'1s'")));
    }
}
