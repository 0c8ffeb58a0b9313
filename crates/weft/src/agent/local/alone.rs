// SPDX-License-Identifier: Apache-2.0
//! Names of what is registered with this machine, while no server can be asked and none ever said:
//! an agent that begins without one knows its own. Only where it is known that there are no access
//! lists; else nobody here can say who may see what.

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
        if told != Told::Away || !self.way.secrets().is_open() {
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
}
