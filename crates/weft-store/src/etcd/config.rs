// SPDX-License-Identifier: Apache-2.0
//! Which etcd, in a person's words: `etcd://[USER@]HOST[:PORT][,HOST[:PORT]…][/PREFIX]`.

use std::sync::Arc;

/// Members named at once.
const MEMBERS_MAX: usize = 16;
const PORT: u16 = 2379;

/// Where a mesh's log is kept.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `host:port` of each member.
    pub members: Vec<String>,
    /// Before every key; several meshes may share one etcd.
    pub prefix: String,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// Where etcd speaks TLS.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// Why words name no etcd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no etcd: {why}; write etcd://HOST:2379,HOST:2379/PREFIX")]
pub struct EtcdConfigError {
    pub text: String,
    pub why: &'static str,
}

// === impl EtcdConfig ===

impl EtcdConfig {
    /// Reads the words; a password is never among them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &str) -> Result<Self, EtcdConfigError> {
        let err = |why| EtcdConfigError { text: text.to_owned(), why };
        let rest = text.strip_prefix("etcd://").ok_or_else(|| err("it does not begin so"))?;
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, "weft"));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, _)) if user.contains(':') => {
                return Err(err(
                    "a password does not belong here, but in a file or the environment",
                ));
            }
            Some((user, hosts)) => (Some((user.to_owned(), String::new())), hosts),
            None => (None, authority),
        };
        let members: Option<Vec<String>> = hosts.split(',').map(member).collect();
        let members = members.ok_or_else(|| err("a member is no host or host:port"))?;
        if members.len() > MEMBERS_MAX {
            return Err(err("it names more than 16 members"));
        }
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { "weft" } else { prefix };
        Ok(Self { members, prefix: format!("/{prefix}/"), user, tls: None })
    }
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("members", &self.members)
            .field("prefix", &self.prefix)
            .field("user", &self.user.as_ref().map(|u| &u.0))
            .field("tls", &self.tls.is_some())
            .finish()
    }
}

/// `host:port`, with the usual port where none is given.
fn member(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').map_or(text, |t| t.trim_end_matches(']'));
    if let Ok(address) = bare.parse::<std::net::IpAddr>() {
        return Some(std::net::SocketAddr::new(address, PORT).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|p| *p > 0)?),
        None => (text, PORT),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
    (!host.is_empty() && host.chars().all(plain)).then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_members_a_prefix_and_a_user() {
        let read = |text| EtcdConfig::parse(text).unwrap();
        assert_eq!(read("etcd://a").members, ["a:2379"]);
        assert_eq!(read("etcd://a").prefix, "/weft/");
        let three = read("etcd://me@10.0.0.1:1,b.example:2,[fd00::1]:3/meshes/one/");
        assert_eq!(three.members, ["10.0.0.1:1", "b.example:2", "[fd00::1]:3"]);
        assert_eq!((&*three.prefix, three.user.unwrap().0), ("/meshes/one/", "me".to_owned()));
        assert_eq!(read("etcd://::1,[::2]").members, ["[::1]:2379", "[::2]:2379"]);
    }

    #[test]
    fn other_words_are_refused_with_the_reason() {
        for (text, why) in [
            ("redis://a", "does not begin so"),
            ("etcd://", "no host"),
            ("etcd://a,,b", "no host"),
            ("etcd://a:0", "no host"),
            ("etcd://a b", "no host"),
            ("etcd://me:secret@a", "password"),
        ] {
            let err = EtcdConfig::parse(text).unwrap_err().to_string();
            assert!(err.contains(why) && err.contains("write etcd://"), "{err}");
        }
    }
}
