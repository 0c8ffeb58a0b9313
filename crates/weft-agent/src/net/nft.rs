// SPDX-License-Identifier: Apache-2.0
//! nf_tables: rules as data, and their messages in one transaction that the kernel takes whole
//! or not at all. Pure; `capture` says which rules there are and sends them.
//!
//! Everything is in tables of family `inet`, so that no rule forgets IPv6. Each rule carries a
//! comment, which `nft list ruleset` shows.

use super::netlink::{ACK, APPEND, Attrs, CREATE, EXCL, Message};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const TABLE_NAME: u16 = 1;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const USERDATA_COMMENT: u8 = 0;
const COMMENT_BYTES_MAX: usize = 127;

const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_ID: u16 = 10;
const SET_CONSTANT: u32 = 2;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENTS_SET_ID: u16 = 4;
const ELEMENT_KEY: u16 = 1;

const LIST_ELEMENT: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// Where verdicts go, and the one register that rules here use.
const REG_VERDICT: u32 = 0;
const REG: u32 = 1;
const NAT_PROTO_SPECIFIED: u32 = 2;
/// `IPS_DST_NAT`: the connection's destination was changed.
const CT_DST_NAT: u32 = 0x20;

/// The protocol numbers that rules name.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// Where a chain sees packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// New connections from outside, before their destination is looked at.
    NatPrerouting,
    /// New connections from here.
    NatOutput,
    FilterInput,
    FilterOutput,
}

/// What the elements of a set are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    Ports(Vec<u16>),
    Protocols(Vec<u8>),
    Users(Vec<u32>),
}

/// A condition; a rule applies when all of its conditions hold. One on something that a packet
/// does not have does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    Mark(u32),
    /// Came over `lo`.
    FromLoopback,
    /// Leaves over `lo`.
    ToLoopback,
    Protocol(u8),
    ProtocolIn(&'static str),
    /// Of TCP or UDP; goes after `Protocol`.
    Port(u16),
    PortIn(&'static str),
    /// The first packet of a TCP connection; goes after `Protocol`.
    Syn,
    Destination(std::net::IpAddr, u8),
    /// The socket's owner.
    UserIn(&'static str),
    /// The socket's control group: its depth and number.
    Cgroup {
        level: u32,
        id: u64,
    },
    /// Is for a socket of here that has another mark, or none. Does not hold where nobody listens.
    OtherSocket(u32),
    /// Of a connection that a rule of this table or another redirected.
    Redirected,
    /// Goes back to where the connection came from.
    Reply,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// Counted, so that a person can see that it happens.
    Drop,
    /// To this port of this machine; the original destination stays known.
    Redirect(u16),
    /// Goes on in another chain, and here again when no rule there decided.
    Jump(&'static str),
}

/// Changes that are made together.
#[derive(Clone, Debug)]
pub struct Batch {
    table: &'static str,
    sets: u32,
    messages: Vec<Message>,
}

// === impl Batch ===

impl Batch {
    /// A new table; when there is one of this name, nothing is changed (`EXIST`).
    pub fn making(table: &'static str) -> Self {
        let mut batch = Self { table, sets: 0, messages: vec![edge(BATCH_BEGIN)] };
        let name = Attrs::new().text(TABLE_NAME, table);
        batch.add("making table", NEWTABLE, CREATE | EXCL, &name);
        batch
    }

    /// An empty table in place of what was there of this name.
    pub fn replacing(table: &'static str) -> Self {
        let mut batch = Self::removing(table);
        batch.add("making table", NEWTABLE, CREATE, &Attrs::new().text(TABLE_NAME, table));
        batch
    }

    /// No table of this name, whether there was one or not.
    pub fn removing(table: &'static str) -> Self {
        let mut batch = Self { table, sets: 0, messages: vec![edge(BATCH_BEGIN)] };
        let name = Attrs::new().text(TABLE_NAME, table);
        // Made first, so that deleting it cannot fail.
        batch.add("making table", NEWTABLE, CREATE, &name);
        batch.add("deleting table", DELTABLE, 0, &name);
        batch
    }

    /// A set that never changes, by the name that `PortIn` and its like use.
    pub fn set(&mut self, name: &'static str, elements: &Elements) {
        self.sets += 1;
        let (key_type, key_bytes, values) = elements.encode();
        let attrs = Attrs::new()
            .text(SET_TABLE, self.table)
            .text(SET_NAME, name)
            .be32(SET_FLAGS, SET_CONSTANT)
            .be32(SET_KEY_TYPE, key_type)
            .be32(SET_KEY_LEN, key_bytes)
            .be32(SET_ID, self.sets);
        self.add(&format!("making set {name} of table"), NEWSET, CREATE, &attrs);
        let list = values.iter().fold(Attrs::new(), |list, value| {
            let key = Attrs::new().nest(ELEMENT_KEY, &Attrs::new().bytes(DATA_VALUE, value));
            list.nest(LIST_ELEMENT, &key)
        });
        let attrs = Attrs::new()
            .text(ELEMENTS_TABLE, self.table)
            .text(ELEMENTS_SET, name)
            .be32(ELEMENTS_SET_ID, self.sets)
            .nest(ELEMENTS_LIST, &list);
        self.add(&format!("filling set {name} of table"), NEWSETELEM, CREATE, &attrs);
    }

    /// A chain that the kernel enters, or without a hook one that rules jump to.
    pub fn chain(&mut self, name: &'static str, hook: Option<Hook>) {
        let mut attrs = Attrs::new().text(CHAIN_TABLE, self.table).text(CHAIN_NAME, name);
        if let Some(hook) = hook {
            let (kind, number, priority) = hook.encode();
            let place = Attrs::new()
                .be32(HOOK_NUMBER, number)
                .bytes(HOOK_PRIORITY, &priority.to_be_bytes());
            attrs = attrs.nest(CHAIN_HOOK, &place).text(CHAIN_TYPE, kind);
        }
        self.add(&format!("making chain {name} of table"), NEWCHAIN, CREATE, &attrs);
    }

    /// A rule after those that the chain has.
    pub fn rule(&mut self, chain: &str, comment: &str, when: &[Match], then: &Verdict) {
        let mut list = Attrs::new();
        for condition in when {
            list = condition.encode(list);
        }
        list = then.encode(list);
        let comment = comment.get(..comment.floor_char_boundary(COMMENT_BYTES_MAX));
        let comment = comment.unwrap_or_default();
        let length = u8::try_from(comment.len() + 1).unwrap_or_default();
        let userdata = [&[USERDATA_COMMENT, length], comment.as_bytes(), b"\0"].concat();
        let attrs = Attrs::new()
            .text(RULE_TABLE, self.table)
            .text(RULE_CHAIN, chain)
            .nest(RULE_EXPRESSIONS, &list)
            .bytes(RULE_USERDATA, &userdata);
        let what = format!("adding the rule {comment:?} to chain {chain} of table");
        self.add(&what, NEWRULE, CREATE | APPEND, &attrs);
    }

    /// The transaction, from its beginning to its end.
    pub fn finish(mut self) -> Vec<Message> {
        if let Some(last) = self.messages.pop() {
            self.messages.push(last.with(ACK));
        }
        self.messages.push(edge(BATCH_END));
        self.messages
    }

    fn add(&mut self, what: &str, kind: u16, flags: u16, attrs: &Attrs) {
        let what = format!("{what} {}", self.table);
        let header = [NFPROTO_INET, 0, 0, 0];
        self.messages.push(Message::new(what, SUBSYSTEM << 8 | kind, flags, &header, attrs));
    }
}

fn edge(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let header = [NFPROTO_UNSPEC, 0, high, low];
    Message::new("changing nf_tables", kind, 0, &header, &Attrs::new())
}

// === impl Hook ===

impl Hook {
    /// Kind of chain, number of the hook, priority (`dstnat`, `filter`).
    fn encode(self) -> (&'static str, u32, i32) {
        match self {
            Self::NatPrerouting => ("nat", 0, -100),
            Self::NatOutput => ("nat", 3, -100),
            Self::FilterInput => ("filter", 1, 0),
            Self::FilterOutput => ("filter", 3, 0),
        }
    }
}

// === impl Elements ===

impl Elements {
    /// The type's number in nft's own table, its size, and the elements, each once.
    fn encode(&self) -> (u32, u32, Vec<Vec<u8>>) {
        let (kind, bytes, mut values): (u32, u32, Vec<Vec<u8>>) = match self {
            Self::Protocols(all) => (12, 1, all.iter().map(|p| vec![*p]).collect()),
            Self::Ports(all) => (13, 2, all.iter().map(|p| p.to_be_bytes().to_vec()).collect()),
            Self::Users(all) => (24, 4, all.iter().map(|u| u.to_ne_bytes().to_vec()).collect()),
        };
        values.sort_unstable();
        values.dedup();
        (kind, bytes, values)
    }
}

// === impl Match ===

/// Keys of `meta`.
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// Keys of `ct`.
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
/// Keys of `socket`.
const SOCKET_MARK: u32 = 1;
const SOCKET_CGROUP: u32 = 3;
/// Operators of `cmp`.
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
/// Bases of `payload`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// Index of `lo`, in every namespace.
const LOOPBACK: u32 = 1;
/// FIN, SYN, RST and ACK; of these a first packet has SYN alone.
const TCP_FLAGS: u8 = 0x17;
const TCP_SYN: u8 = 0x02;

impl Match {
    fn encode(&self, to: Attrs) -> Attrs {
        match self {
            Self::Mark(mark) => equal(meta(to, META_MARK), &mark.to_ne_bytes()),
            Self::FromLoopback => equal(meta(to, META_IIF), &LOOPBACK.to_ne_bytes()),
            Self::ToLoopback => equal(meta(to, META_OIF), &LOOPBACK.to_ne_bytes()),
            Self::Protocol(number) => equal(meta(to, META_L4PROTO), &[*number]),
            Self::ProtocolIn(set) => lookup(meta(to, META_L4PROTO), set),
            Self::Port(port) => equal(payload(to, TRANSPORT, 2, 2), &port.to_be_bytes()),
            Self::PortIn(set) => lookup(payload(to, TRANSPORT, 2, 2), set),
            Self::Syn => equal(mask(payload(to, TRANSPORT, 13, 1), &[TCP_FLAGS]), &[TCP_SYN]),
            Self::Destination(ip, prefix) => destination(to, *ip, *prefix),
            Self::UserIn(set) => lookup(meta(to, META_SKUID), set),
            Self::Cgroup { level, id } => {
                let cgroup = Attrs::new().be32(1, SOCKET_CGROUP).be32(2, REG).be32(3, *level);
                equal(expr(to, "socket", &cgroup), &id.to_ne_bytes())
            }
            Self::OtherSocket(mark) => {
                let its_mark = Attrs::new().be32(1, SOCKET_MARK).be32(2, REG);
                compare(expr(to, "socket", &its_mark), UNEQUAL, &mark.to_ne_bytes())
            }
            Self::Redirected => {
                compare(mask(ct(to, CT_STATUS), &CT_DST_NAT.to_ne_bytes()), UNEQUAL, &[0; 4])
            }
            Self::Reply => equal(ct(to, CT_DIRECTION), &[1]),
        }
    }
}

fn destination(to: Attrs, ip: std::net::IpAddr, prefix: u8) -> Attrs {
    let (family, offset, octets) = match ip {
        std::net::IpAddr::V4(v4) => (NFPROTO_IPV4, 16, v4.octets().to_vec()),
        std::net::IpAddr::V6(v6) => (NFPROTO_IPV6, 24, v6.octets().to_vec()),
    };
    let bits = usize::from(prefix);
    let wanted: Vec<u8> = (0..octets.len())
        .map(|at| match bits.saturating_sub(at * 8).min(8) {
            0 => 0,
            // The high bits of this octet.
            n => u8::MAX << (8 - n),
        })
        .collect();
    let network: Vec<u8> = octets.iter().zip(&wanted).map(|(octet, mask)| octet & mask).collect();
    let to = equal(meta(to, META_NFPROTO), &[family]);
    let length = u32::try_from(octets.len()).unwrap_or_default();
    equal(mask(payload(to, NETWORK, offset, length), &wanted), &network)
}

// === impl Verdict ===

impl Verdict {
    fn encode(&self, to: Attrs) -> Attrs {
        match self {
            Self::Accept => verdict(to, 1, None),
            Self::Drop => verdict(expr(to, "counter", &Attrs::new()), 0, None),
            Self::Jump(chain) => verdict(to, -3, Some(chain)),
            Self::Redirect(port) => {
                let value = Attrs::new().bytes(DATA_VALUE, &port.to_be_bytes());
                let to = expr(to, "immediate", &Attrs::new().be32(1, REG).nest(2, &value));
                let ports = Attrs::new().be32(1, REG).be32(3, NAT_PROTO_SPECIFIED);
                expr(to, "redir", &ports)
            }
        }
    }
}

fn verdict(to: Attrs, code: i32, chain: Option<&str>) -> Attrs {
    let mut inner = Attrs::new().bytes(VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        inner = inner.text(VERDICT_CHAIN, chain);
    }
    let data = Attrs::new().nest(DATA_VERDICT, &inner);
    expr(to, "immediate", &Attrs::new().be32(1, REG_VERDICT).nest(2, &data))
}

// === expressions ===

fn expr(to: Attrs, name: &str, data: &Attrs) -> Attrs {
    to.nest(LIST_ELEMENT, &Attrs::new().text(EXPR_NAME, name).nest(EXPR_DATA, data))
}

fn meta(to: Attrs, key: u32) -> Attrs {
    expr(to, "meta", &Attrs::new().be32(1, REG).be32(2, key))
}

fn ct(to: Attrs, key: u32) -> Attrs {
    expr(to, "ct", &Attrs::new().be32(1, REG).be32(2, key))
}

fn payload(to: Attrs, base: u32, offset: u32, length: u32) -> Attrs {
    let data = Attrs::new().be32(1, REG).be32(2, base).be32(3, offset).be32(4, length);
    expr(to, "payload", &data)
}

fn mask(to: Attrs, mask: &[u8]) -> Attrs {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    let value = |bytes: &[u8]| Attrs::new().bytes(DATA_VALUE, bytes);
    let data = Attrs::new().be32(1, REG).be32(2, REG).be32(3, length);
    let data = data.nest(4, &value(mask)).nest(5, &value(&vec![0; mask.len()]));
    expr(to, "bitwise", &data)
}

fn equal(to: Attrs, value: &[u8]) -> Attrs {
    compare(to, EQUAL, value)
}

fn compare(to: Attrs, operator: u32, value: &[u8]) -> Attrs {
    let value = Attrs::new().bytes(DATA_VALUE, value);
    expr(to, "cmp", &Attrs::new().be32(1, REG).be32(2, operator).nest(3, &value))
}

fn lookup(to: Attrs, set: &str) -> Attrs {
    expr(to, "lookup", &Attrs::new().text(1, set).be32(2, REG))
}
