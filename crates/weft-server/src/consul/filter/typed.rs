// SPDX-License-Identifier: Apache-2.0
//! What the records of a list are made of, so that an expression is judged by the types of what it
//! names before there is anything to judge, as Consul does. Called by [`super::Filter::of`] alone.

use serde_json::{Value, json};

use super::{Expr, Op, Test};

/// The fields of a record that a filter may name.
pub type Fields = &'static [(&'static str, Type)];

#[derive(Clone, Copy, Debug)]
pub enum Type {
    Text,
    Number,
    Flag,
    Texts,
    /// By keys of the client's own.
    Map(&'static Type),
    Record(Fields),
    Records(Fields),
    /// As the client wrote it, but for these fields, which it may have left out.
    Written(Fields),
    /// As the client wrote it.
    Any,
}

use Type::{Any, Flag, Map, Number, Record, Records, Text, Texts, Written};

const TAGGED: Type = Map(&Record(&[("Address", Text), ("Port", Number)]));
const WEIGHTS: Type = Record(&[("Passing", Number), ("Warning", Number)]);

/// A proxy's; what is below its lists and its `Config` is as it was written.
const PROXY: Type = Written(&[
    ("DestinationServiceName", Text),
    ("DestinationServiceID", Text),
    ("LocalServiceAddress", Text),
    ("LocalServicePort", Number),
    ("LocalServiceSocketPath", Text),
    ("Mode", Text),
    ("MutualTLSMode", Text),
    ("MeshGateway", Written(&[("Mode", Text)])),
    ("Expose", Written(&[("Checks", Flag)])),
    ("TransparentProxy", Written(&[("OutboundListenerPort", Number), ("DialedDirectly", Flag)])),
    (
        "AccessLogs",
        Written(&[
            ("Enabled", Flag),
            ("DisableListenerLogs", Flag),
            ("Type", Text),
            ("Path", Text),
            ("JSONFormat", Text),
            ("TextFormat", Text),
        ]),
    ),
]);
const CONNECT: Type = Written(&[("Native", Flag)]);

/// `catalog/nodes`.
pub const NODE: Fields = &[
    ("ID", Text),
    ("Node", Text),
    ("Address", Text),
    ("Datacenter", Text),
    ("TaggedAddresses", Map(&Text)),
    ("Meta", Map(&Text)),
    ("PeerName", Text),
];

/// `catalog/node/:n`, and the services of `health/service`.
pub const SERVICE: Fields = &[
    ("Kind", Text),
    ("ID", Text),
    ("Service", Text),
    ("Tags", Texts),
    ("Address", Text),
    ("TaggedAddresses", TAGGED),
    ("Meta", Map(&Text)),
    ("Port", Number),
    ("SocketPath", Text),
    ("Weights", WEIGHTS),
    ("EnableTagOverride", Flag),
    ("Proxy", PROXY),
    ("Connect", CONNECT),
    ("Locality", Any),
    ("PeerName", Text),
    // What an agent shows besides.
    ("Datacenter", Text),
    ("ContentHash", Text),
];

/// `catalog/service/:s`.
pub const CATALOG_SERVICE: Fields = &[
    ("ID", Text),
    ("Node", Text),
    ("Address", Text),
    ("Datacenter", Text),
    ("TaggedAddresses", Map(&Text)),
    ("NodeMeta", Map(&Text)),
    ("ServiceKind", Text),
    ("ServiceID", Text),
    ("ServiceName", Text),
    ("ServiceTags", Texts),
    ("ServiceAddress", Text),
    ("ServiceTaggedAddresses", TAGGED),
    ("ServiceWeights", WEIGHTS),
    ("ServiceMeta", Map(&Text)),
    ("ServicePort", Number),
    ("ServiceSocketPath", Text),
    ("ServiceEnableTagOverride", Flag),
    ("ServiceProxy", PROXY),
    ("ServiceConnect", CONNECT),
    ("ServiceLocality", Any),
    ("PeerName", Text),
];

/// Checks, wherever they are listed.
pub const CHECK: Fields = &[
    ("Node", Text),
    ("CheckID", Text),
    ("Name", Text),
    ("Status", Text),
    ("Notes", Text),
    ("Output", Text),
    ("ServiceID", Text),
    ("ServiceName", Text),
    ("ServiceTags", Texts),
    ("Type", Text),
    ("Interval", Text),
    ("Timeout", Text),
    ("ExposedPort", Number),
    ("PeerName", Text),
];

/// `agent/members`.
pub const MEMBER: Fields = &[
    ("Name", Text),
    ("Addr", Text),
    ("Port", Number),
    ("Tags", Map(&Text)),
    ("Status", Number),
    ("ProtocolMin", Number),
    ("ProtocolMax", Number),
    ("ProtocolCur", Number),
    ("DelegateMin", Number),
    ("DelegateMax", Number),
    ("DelegateCur", Number),
];

/// `connect/intentions`.
pub const INTENTION: Fields = &[
    ("ID", Text),
    ("Description", Text),
    ("SourceNS", Text),
    ("SourceName", Text),
    ("SourcePartition", Text),
    ("SourcePeer", Text),
    ("SourceSamenessGroup", Text),
    ("SourceType", Text),
    ("DestinationNS", Text),
    ("DestinationName", Text),
    ("DestinationPartition", Text),
    ("Action", Text),
    ("Meta", Map(&Text)),
    ("Precedence", Number),
];

/// `config/service-defaults`, the one kind of config entries that Consul filters.
pub const SERVICE_DEFAULTS: Fields = &[
    ("Kind", Text),
    ("Name", Text),
    ("Protocol", Text),
    ("Mode", Text),
    ("MutualTLSMode", Text),
    ("ExternalSNI", Text),
    ("BalanceInboundConnections", Text),
    ("MaxInboundConnections", Number),
    ("LocalConnectTimeoutMs", Number),
    ("LocalRequestTimeoutMs", Number),
    ("TransparentProxy", Written(&[("OutboundListenerPort", Number), ("DialedDirectly", Flag)])),
    ("MeshGateway", Written(&[("Mode", Text)])),
    ("Expose", Written(&[("Checks", Flag)])),
    ("UpstreamConfig", Any),
    ("Destination", Any),
    ("RateLimits", Any),
    ("EnvoyExtensions", Any),
    ("Meta", Map(&Text)),
    ("CreateIndex", Number),
    ("ModifyIndex", Number),
];

/// `health/service/:s`.
pub const HEALTH: Fields =
    &[("Node", Record(NODE)), ("Service", Record(SERVICE)), ("Checks", Records(CHECK))];

/// Judges an expression, and writes its values as the types have them.
///
/// # Errors
/// When it names what there is not, or compares what cannot be compared so.
pub(super) fn judge(expr: &mut Expr, of: Fields) -> Result<(), String> {
    match expr {
        Expr::Or(a, b) | Expr::And(a, b) => {
            judge(a, of)?;
            judge(b, of)
        }
        Expr::Not(inner) => judge(inner, of),
        Expr::Test(test) => {
            let (leaf, is_certain) = leaf(&test.path, of)?;
            admit(test, leaf)?;
            test.absent = match is_certain {
                true => zero(leaf),
                false => None,
            };
            test.judged = true;
            Ok(())
        }
    }
}

// === helpers ===

/// The type at the end of a path; and whether there is always exactly one value at it.
fn leaf(path: &[String], of: Fields) -> Result<(Type, bool), String> {
    let (mut now, mut is_certain) = (Record(of), true);
    for (at, segment) in path.iter().enumerate() {
        let fields: Fields = match now {
            Any => return Ok((Any, false)),
            Map(each) => {
                (now, is_certain) = (*each, false);
                continue;
            }
            Record(fields) => fields,
            Written(fields) if fields.iter().any(|(name, _)| name == segment) => fields,
            Written(_) => return Ok((Any, false)),
            Records(fields) => {
                is_certain = false;
                fields
            }
            Text | Number | Flag | Texts => &[],
        };
        let Some((_, found)) = fields.iter().find(|(name, _)| name == segment) else {
            let so_far: Vec<&str> = path.iter().take(at + 1).map(String::as_str).collect();
            return Err(format!("Selector {:?} is not valid", so_far.join(".")));
        };
        now = *found;
    }
    Ok((now, is_certain))
}

fn admit(test: &mut Test, leaf: Type) -> Result<(), String> {
    let selector = test.path.join(".");
    let can = matches!(
        (leaf, &test.op),
        (Any | Written(_), _)
            | (Text | Number | Flag, Op::Equal(_))
            | (Text, Op::Contains(_) | Op::Matches(_))
            | (Texts | Map(_), Op::Contains(_) | Op::Empty)
            | (Records(_), Op::Empty)
    );
    if !can {
        let name = match test.op {
            Op::Equal(_) => "Equal",
            Op::Contains(_) => "In",
            Op::Empty => "Is Empty",
            Op::Matches(_) => "Matches",
        };
        return Err(format!("Invalid match operator {name:?} for selector {selector:?}"));
    }
    if let Op::Equal(text) = &mut test.op {
        let read = match leaf {
            Number => number(text).map(|n| n.to_string()).ok_or("strconv.ParseInt"),
            Flag => flag(text).map(|b| b.to_string()).ok_or("strconv.ParseBool"),
            _ => return Ok(()),
        };
        *text = read.map_err(|by| {
            format!(
                "Failed to coerce value {text:?} for selector {selector:?}: {by}: parsing \
                 {text:?}: invalid syntax"
            )
        })?;
    }
    Ok(())
}

/// What a field that is left out is.
fn zero(of: Type) -> Option<Value> {
    Some(match of {
        Text => json!(""),
        Number => json!(0),
        Flag => json!(false),
        Texts | Records(_) => json!([]),
        Map(_) => json!({}),
        Record(_) | Written(_) | Any => return None,
    })
}

/// As Go reads numbers in source text.
fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.to_ascii_lowercase();
    let bases = [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)];
    let based = |(prefix, base)| Some((digits.strip_prefix(prefix)?, base));
    let (digits, base) = match digits.as_str() {
        "0" => ("0", 10),
        plain => bases.into_iter().find_map(based).unwrap_or((plain, 10)),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(digits, base).ok()?.checked_mul(sign)
}

/// As Go reads flags.
fn flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Filter;
    use super::*;

    fn check(filter: &str, expect: Result<bool, &str>) {
        let item = json!({
            "Node": {"Node": "n1", "Meta": {"rack": "a"}},
            "Service": {"Tags": ["v1"], "Port": 80, "Meta": {}, "EnableTagOverride": false,
                        "Proxy": {"Mode": ""}, "Locality": null},
            "Checks": [{"Status": "passing"}, {"Status": "warning"}],
        });
        let got = Filter::of(filter, HEALTH).and_then(|f| f.holds(&item)).map_err(|r| r.text);
        match expect {
            Ok(expect) => assert_eq!(got, Ok(expect), "{filter}"),
            Err(part) => assert!(got.clone().is_err_and(|e| e.contains(part)), "{filter}: {got:?}"),
        }
    }

    #[test]
    fn what_is_left_out_is_what_its_type_is_without_a_value() {
        check("Service.Kind == \"\"", Ok(true));
        check("Service.Kind != \"\"", Ok(false));
        check("Service.Kind == connect-proxy", Ok(false));
        check("Service.TaggedAddresses is empty", Ok(true));
        check("lan in Service.TaggedAddresses", Ok(false));
        check("Service.TaggedAddresses.lan.Port == 0", Ok(false));
        check("Service.Weights.Passing == 0", Ok(true));
        check("Node.Meta.other == \"\"", Ok(false));
        check("Node.Meta.other != a", Ok(true));
        check("Service.Proxy.Nothing == a", Ok(false));
        check("Service.Locality.Region == a", Ok(false));
    }

    /// Every leaf of a tree that has one value, as its path and what it is without one.
    fn leaves(of: Type, path: &str, out: &mut Vec<(String, Type)>) {
        match of {
            Record(fields) | Written(fields) => {
                for (name, of) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    leaves(*of, &format!("{path}{dot}{name}"), out);
                }
            }
            Map(_) | Any | Records(_) => {}
            leaf => out.push((path.to_owned(), leaf)),
        }
    }

    #[test]
    fn each_field_that_is_not_set_is_what_it_is_in_consul_then() {
        let lists = [NODE, SERVICE, CATALOG_SERVICE, CHECK, HEALTH];
        for fields in lists.into_iter().chain([MEMBER, INTENTION, SERVICE_DEFAULTS]) {
            let mut all = Vec::new();
            leaves(Record(fields), "", &mut all);
            for (path, leaf) in all {
                let (unset, set) = match leaf {
                    Text => (format!("{path} == \"\""), format!("{path} == a")),
                    Number => (format!("{path} == 0"), format!("{path} == 1")),
                    Flag => (format!("{path} == false"), format!("{path} == true")),
                    _ => (format!("{path} is empty"), format!("a in {path}")),
                };
                for item in [json!({}), json!({"Proxy": {"Expose": null}, "Connect": null})] {
                    let holds = |text: &str| Filter::of(text, fields).unwrap().holds(&item);
                    assert_eq!(holds(&unset), Ok(true), "{unset}");
                    assert_eq!(holds(&set), Ok(false), "{set}");
                }
            }
        }
    }

    #[test]
    fn a_proxy_is_read_however_its_fields_were_spelled() {
        let item = json!({"Proxy": {"destination_service_name": "web", "localServicePort": 80,
                                    "Config": {"a_b": "1"}}});
        for (filter, expect) in [
            ("Proxy.DestinationServiceName == web", true),
            ("Proxy.DestinationServiceName == \"\"", false),
            ("Proxy.LocalServicePort == 0x50", true),
            ("Proxy.Config.a_b == 1", true),
            ("Proxy.Config.none == 1", false),
        ] {
            let holds = Filter::of(filter, SERVICE).and_then(|f| f.holds(&item));
            assert_eq!(holds, Ok(expect), "{filter}");
        }
        check("Service.Proxy.LocalServicePort == a", Err("Failed to coerce value"));
        check("Service.Connect.Native is empty", Err("Invalid match operator"));
    }

    #[test]
    fn values_are_read_by_the_type() {
        check("Service.Port == 0x50", Ok(true));
        check("Service.Port == 0120", Ok(true));
        check("Service.Port == +80", Ok(true));
        check("Service.Port != 81", Ok(true));
        check("Service.EnableTagOverride == 0", Ok(true));
        check("Service.EnableTagOverride == T", Ok(false));
        check("Checks.Status == warning", Ok(true));
        check("Node.Node contains n", Ok(true));
        for port in ["abc", "--1", "+-1", "0x", "80.0", "99999999999999999999"] {
            check(&format!("Service.Port == \"{port}\""), Err("Failed to coerce value"));
        }
        check("Service.EnableTagOverride == no", Err("strconv.ParseBool: parsing \"no\""));
    }

    #[test]
    fn what_cannot_be_asked_of_a_type_is_refused() {
        check("Nope == 1", Err("Selector \"Nope\" is not valid"));
        check("Checks.Nope == 1", Err("Selector \"Checks.Nope\" is not valid"));
        check("Service.Port.x == 1", Err("Selector \"Service.Port.x\" is not valid"));
        check("Node.Node == n1 or Service.Nope == 1", Err("Selector \"Service.Nope\""));
        check("not Service.Nope == 1", Err("Selector \"Service.Nope\""));
        check("Service.Tags == v1", Err("Invalid match operator \"Equal\" for selector"));
        check("Service == a", Err("Invalid match operator"));
        check("Service.Port matches 8", Err("Invalid match operator \"Matches\""));
        check("Service.Port is empty", Err("Invalid match operator \"Is Empty\""));
        check("a in Checks", Err("Invalid match operator \"In\""));
        check("Checks is empty", Ok(false));
    }
}
