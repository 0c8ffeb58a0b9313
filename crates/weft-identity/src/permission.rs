// SPDX-License-Identifier: Apache-2.0
//! The one table of permissions: who may do what to which names. Dialects (Consul's ACL rules
//! today) are read into rows; every door asks the same table. Pure.
//!
//! The most specific row decides: one for exactly the name before one for a prefix, a longer
//! prefix before a shorter one, and of rows alike the one that denies. Where no row speaks the
//! table's default does. Names that are one however they are written are one here too, so that
//! another spelling is no way around a row.

use std::sync::Arc;

use crate::guards;

/// What a name is a name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Acl,
    Agent,
    Event,
    Intention,
    Key,
    Keyring,
    Mesh,
    Node,
    Operator,
    Peering,
    Query,
    Service,
    Session,
}

/// What is done. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    Read,
    /// Reading all names under a prefix.
    List,
    Write,
}

/// Which names a row is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Names {
    Exactly(Arc<str>),
    Prefix(Arc<str>),
}

/// One row. `verb` is the most that is allowed; `None` denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Who: a policy or a role, for messages.
    pub subject: Arc<str>,
    pub kind: Kind,
    /// `None` for every namespace.
    pub namespace: Option<Arc<str>>,
    pub names: Names,
    pub verb: Option<Verb>,
}

/// The rows that hold for one caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    rows: Vec<Permission>,
    /// What no row speaks of is allowed, but for [`Kind::Acl`].
    allow: bool,
    /// Everything is allowed.
    manage: bool,
}

// === impl Kind ===

impl Kind {
    pub const ALL: [Self; 13] = [
        Self::Acl,
        Self::Agent,
        Self::Event,
        Self::Intention,
        Self::Key,
        Self::Keyring,
        Self::Mesh,
        Self::Node,
        Self::Operator,
        Self::Peering,
        Self::Query,
        Self::Service,
        Self::Session,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acl => "acl",
            Self::Agent => "agent",
            Self::Event => "event",
            Self::Intention => "intention",
            Self::Key => "key",
            Self::Keyring => "keyring",
            Self::Mesh => "mesh",
            Self::Node => "node",
            Self::Operator => "operator",
            Self::Peering => "peering",
            Self::Query => "query",
            Self::Service => "service",
            Self::Session => "session",
        }
    }

    /// Whether names of this kind differ by more than case: services, those that intentions are
    /// about, and nodes.
    fn folds_case(self) -> bool {
        matches!(self, Self::Intention | Self::Node | Self::Service)
    }

    /// Whether a name of this kind begins with a text.
    fn begins(self, name: &str, with: &str) -> bool {
        let head = name.as_bytes().get(..with.len());
        head.is_some_and(|head| match self.folds_case() {
            true => head.eq_ignore_ascii_case(with.as_bytes()),
            false => *head == *with.as_bytes(),
        })
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

// === impl Verb ===

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
        }
    }
}

// === impl Names ===

impl Names {
    fn cover(&self, kind: Kind, name: &str) -> bool {
        match self {
            Self::Exactly(exact) => exact.len() == name.len() && kind.begins(name, exact),
            Self::Prefix(prefix) => kind.begins(name, prefix),
        }
    }

    /// Higher is more specific.
    fn weight(&self) -> (bool, usize) {
        match self {
            Self::Exactly(exact) => (true, exact.len()),
            Self::Prefix(prefix) => (false, prefix.len()),
        }
    }
}

// === impl Permissions ===

impl Permissions {
    /// `allow`: what is allowed where no row speaks.
    pub fn new(rows: Vec<Permission>, allow: bool) -> Self {
        Self { rows, allow, manage: false }
    }

    /// Everything.
    pub fn management() -> Self {
        Self { rows: Vec::new(), allow: true, manage: true }
    }

    pub fn is_management(&self) -> bool {
        self.manage
    }

    pub fn rows(&self) -> &[Permission] {
        &self.rows
    }

    /// Whether what no row speaks of is allowed.
    pub fn allows_by_default(&self) -> bool {
        self.allow
    }

    /// Whether something may be done to one name.
    pub fn allows(&self, verb: Verb, kind: Kind, namespace: &str, name: &str) -> bool {
        self.manage || self.decide(kind, namespace, name, false) >= Some(verb)
    }

    /// Whether it may be done to every name under a prefix: the prefix as a whole is allowed,
    /// and nothing below it is denied.
    pub fn allows_tree(&self, verb: Verb, kind: Kind, namespace: &str, prefix: &str) -> bool {
        if self.manage {
            return true;
        }
        let below = |names: &Names| match names {
            Names::Exactly(name) | Names::Prefix(name) => kind.begins(name, prefix),
        };
        let denied = |row: &&Permission| below(&row.names) && row.verb < Some(verb);
        self.decide(kind, namespace, prefix, true) >= Some(verb)
            && !(self.about(kind, namespace).any(|row| denied(&row)) && guards::on("tree-below"))
    }

    /// Whether it may be done to any name at all.
    pub fn allows_some(&self, verb: Verb, kind: Kind, namespace: &str) -> bool {
        self.manage
            || self.by_default(kind) >= Some(verb)
            || self.about(kind, namespace).any(|row| row.verb >= Some(verb))
    }

    fn decide(&self, kind: Kind, namespace: &str, name: &str, tree: bool) -> Option<Verb> {
        let speaks = |row: &&Permission| {
            row.names.cover(kind, name) && !(tree && matches!(row.names, Names::Exactly(_)))
        };
        // Of rows alike: a denial, else the most that any allows.
        let rank = |row: &&Permission| (row.names.weight(), row.verb.is_none(), row.verb);
        match self.about(kind, namespace).filter(speaks).max_by_key(rank) {
            Some(row) => row.verb,
            None => self.by_default(kind),
        }
    }

    fn by_default(&self, kind: Kind) -> Option<Verb> {
        (self.allow && kind != Kind::Acl).then_some(Verb::Write)
    }

    fn about<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a Permission> {
        self.rows.iter().filter(move |row| {
            row.kind == kind && row.namespace.as_deref().is_none_or(|ns| ns == namespace)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: Kind, names: Names, verb: Option<Verb>) -> Permission {
        Permission { subject: "p".into(), kind, namespace: None, names, verb }
    }

    fn table() -> Permissions {
        let prefix = |p: &str| Names::Prefix(p.into());
        Permissions::new(
            vec![
                row(Kind::Key, prefix(""), Some(Verb::Read)),
                row(Kind::Key, prefix("app/"), Some(Verb::Write)),
                row(Kind::Key, prefix("app/secret/"), None),
                row(Kind::Key, Names::Exactly("app/secret/open".into()), Some(Verb::Read)),
                row(Kind::Key, prefix("twice/"), Some(Verb::Write)),
                row(Kind::Key, prefix("twice/"), None),
            ],
            false,
        )
    }

    #[test]
    fn the_most_specific_row_decides_and_a_denial_wins_among_equals() {
        let may = |verb, name| table().allows(verb, Kind::Key, "default", name);
        assert!(may(Verb::Read, "x") && !may(Verb::Write, "x"));
        assert!(may(Verb::Write, "app/x"));
        assert!(!may(Verb::Read, "app/secret/x"));
        assert!(may(Verb::Read, "app/secret/open"));
        assert!(!may(Verb::Read, "twice/x"));
        assert!(!table().allows(Verb::Read, Kind::Service, "default", "x"), "no row, no right");
    }

    #[test]
    fn reg_62_a_prefix_is_allowed_only_when_nothing_below_it_is_denied() {
        let may = |prefix| table().allows_tree(Verb::Write, Kind::Key, "default", prefix);
        assert!(!may("app/"), "app/secret/ is below it");
        assert!(!may("app/secret/"));
        assert!(!may("app"), "reaches past app/");
        assert!(may("app/x/"));
        assert!(!may(""));
    }

    #[test]
    fn the_default_never_reaches_access_lists() {
        let open = Permissions::new(Vec::new(), true);
        assert!(open.allows(Verb::Write, Kind::Key, "default", "x"));
        assert!(!open.allows(Verb::Read, Kind::Acl, "default", ""));
        assert!(Permissions::management().allows(Verb::Write, Kind::Acl, "default", ""));
    }

    #[test]
    fn rows_of_another_namespace_do_not_speak() {
        let mut one = row(Kind::Service, Names::Prefix("".into()), Some(Verb::Write));
        one.namespace = Some("a".into());
        let table = Permissions::new(vec![one], false);
        assert!(table.allows(Verb::Write, Kind::Service, "a", "web"));
        assert!(!table.allows(Verb::Write, Kind::Service, "b", "web"));
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
    }
}
