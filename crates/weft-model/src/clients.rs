// SPDX-License-Identifier: Apache-2.0
//! Clients of whom something else holds than of everybody: those of a namespace, or those among
//! them with some labels. Names of children say whom they are for; control writes and judges them,
//! and a proxy that is sent several takes the closest.

use std::cmp::Reverse;
use std::fmt;

use crate::{CLIENTS_MARK, Labels};

/// What stands behind the namespace where only clients with some labels are meant.
const WITH_MARK: &str = "~with~";

/// Whom a child is for, as its name says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clients<'a> {
    pub namespace: &'a str,
    chosen: Option<(&'a str, &'a str)>,
}

/// Those of a namespace whose labels a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    /// Of several that a client fits, the oldest counts.
    pub created_ms: u64,
    pub labels: Labels,
}

/// The end of a child's name.
#[derive(Clone, Copy, Debug)]
pub struct ForClients<'a>(pub &'a str, pub Option<&'a Chosen>);

// === impl Clients ===

impl<'a> Clients<'a> {
    pub(crate) fn parse(whom: &'a str) -> Self {
        match whom.split_once(WITH_MARK) {
            None => Self { namespace: whom, chosen: None },
            Some((namespace, chosen)) => {
                Self { namespace, chosen: Some(chosen.split_once('~').unwrap_or((chosen, ""))) }
            }
        }
    }

    /// Whether a client of a namespace is one of them; of a Gateway nobody knows any labels.
    pub fn takes(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        let Some((_, wanted)) = self.chosen else { return self.namespace == namespace };
        let Some(labels) = labels.filter(|_| self.namespace == namespace) else { return false };
        wanted.split(',').filter(|one| !one.is_empty()).all(|one| {
            let (key, value) = one.split_once('=').unwrap_or((one, ""));
            labels.get(&*key.replace('|', "/")).is_some_and(|own| **own == *value)
        })
    }

    /// The greater, the closer: labels before a namespace, and among them the oldest.
    pub fn closeness(&self) -> (bool, Reverse<u64>) {
        let created = self.chosen.and_then(|(created, _)| created.parse().ok());
        (self.chosen.is_some(), Reverse(created.unwrap_or(u64::MAX)))
    }
}

// === impl ForClients ===

/// Neither a label's key nor its value has any of the signs that part them.
impl fmt::Display for ForClients<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(namespace, chosen) = self;
        write!(f, "{CLIENTS_MARK}{namespace}")?;
        let Some(Chosen { created_ms, labels }) = chosen else { return Ok(()) };
        write!(f, "{WITH_MARK}{created_ms}~")?;
        for (i, (key, value)) in labels.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}={value}", key.replace('/', "|"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_clients;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn a_name_says_whom_it_is_for() {
        let chosen = Chosen {
            created_ms: 7,
            labels: labels(&[("app.kubernetes.io/name", "web"), ("v", "1.2")]),
        };
        let name = format!("backend/80/v1{}", ForClients("shop", Some(&chosen)));
        let (child, clients) = for_clients(&name).unwrap();
        assert_eq!((child, clients.namespace), ("backend/80/v1", "shop"));
        let whole = labels(&[("app.kubernetes.io/name", "web"), ("v", "1.2"), ("more", "")]);
        assert!(clients.takes("shop", Some(&whole)));
        assert!(!clients.takes("other", Some(&whole)));
        assert!(!clients.takes("shop", Some(&labels(&[("v", "1.2")]))));
        assert!(!clients.takes("shop", None));
        // A selector without labels takes all of its namespace.
        let all = Chosen { created_ms: 9, labels: Labels::new() };
        let name = format!("backend/80{}", ForClients("shop", Some(&all)));
        let every = for_clients(&name).unwrap().1;
        assert!(every.takes("shop", Some(&Labels::new())));
        let name = format!("backend/80{}", ForClients("shop", None));
        let plain = for_clients(&name).unwrap().1;
        assert!(plain.takes("shop", None) && !plain.takes("other", None));
        assert!(clients.closeness() > every.closeness() && every.closeness() > plain.closeness());
    }
}
