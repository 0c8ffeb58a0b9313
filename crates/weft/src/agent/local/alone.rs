// SPDX-License-Identifier: Apache-2.0
//! Names of what is registered with this machine, as long as no server was there since its agent
//! began: it knows its own. Only where it is known that there are no access lists; else nobody here
//! can say who may see what.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use weft_server::dns::{Carrier, Mesh, Server, Told};

use super::Names;
use super::way::Way;

/// Asks the server first.
pub struct Alone {
    pub names: Arc<Names>,
    /// Answers from the machine's own registry.
    pub own: Server,
    pub way: Arc<Way>,
}

impl Alone {
    async fn ask_now(&self, query: Vec<u8>, carrier: Carrier) -> Told {
        let told = self.names.ask(query.clone(), carrier).await;
        let knows = self.way.secrets().is_open() && !self.way.was_there();
        if told != Told::Away || !knows || is_of_servers(&query) {
            return told;
        }
        match self.own.of_mesh(&query, carrier, None).await {
            // That there is no such name only the server could say.
            Told::Answer(answer) if is_something(&answer) => Told::Answer(answer),
            _ => Told::Away,
        }
    }
}

impl Mesh for Alone {
    fn ask(&self, query: Vec<u8>, carrier: Carrier) -> BoxFuture<'_, Told> {
        self.ask_now(query, carrier).boxed()
    }

    fn is_apart(&self) -> bool {
        true
    }

    fn keeps(&self, labels: &[&str]) -> bool {
        self.names.keeps(labels)
    }
}

/// Whether a question is about Consul's servers, which this machine is none of: a label before the
/// zone's own says `consul`.
fn is_of_servers(query: &[u8]) -> bool {
    let mut rest = query.get(12..).unwrap_or_default();
    let mut labels = Vec::new();
    while let Some((len, tail)) = rest.split_first().filter(|(len, _)| (1..64).contains(*len)) {
        let Some((label, tail)) = tail.split_at_checked(usize::from(*len)) else { break };
        labels.push(label);
        rest = tail;
    }
    labels.pop();
    labels.iter().any(|label| {
        label.eq_ignore_ascii_case(b"consul") || label.eq_ignore_ascii_case(b"_consul")
    })
}

/// No error, and at least one record (RFC 1035, 4.1.1).
fn is_something(answer: &[u8]) -> bool {
    let no_error = answer.get(3).is_some_and(|flags| flags & 0x0f == 0);
    no_error && answer.get(6..8).is_some_and(|count| count != [0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_server_could_say_is_not_said() {
        let answer = |flags: u8, count: u8| [0, 1, 0x84, flags, 0, 1, 0, count, 0, 0, 0, 0];
        assert!(is_something(&answer(0, 1)));
        assert!(!is_something(&answer(0, 0)) && !is_something(&answer(3, 1)));
        assert!(!is_something(&[]));
    }

    #[test]
    fn a_machine_is_no_server() {
        let query = |name: &str| {
            let labels = name.split('.').flat_map(|label| {
                let len = u8::try_from(label.len()).unwrap();
                std::iter::once(len).chain(label.bytes())
            });
            [0; 12].into_iter().chain(labels).chain([0, 0, 1, 0, 1]).collect::<Vec<u8>>()
        };
        for name in
            ["consul.service.consul", "_CONSUL._tcp.service.consul", "consul.service.dc1.consul"]
        {
            assert!(is_of_servers(&query(name)), "{name}");
        }
        for name in ["web.service.consul", "m1.node.consul", "consul"] {
            assert!(!is_of_servers(&query(name)), "{name}");
        }
        assert!(!is_of_servers(&[]));
    }
}
