// SPDX-License-Identifier: Apache-2.0
//! The rule language, and that every committed rule is within it.

use serde_json::json;

use super::*;
use crate::kind::KINDS;
use crate::schema::{self, Schema, Shape};

fn rules(schema: &Schema, out: &mut Vec<String>) {
    if let Some(rules_) = &schema.rules {
        out.extend(rules_.cel.iter().map(|r| r.rule.to_string()));
        let all = rules_.all_of.iter().chain(&rules_.any_of).chain(&rules_.one_of);
        all.for_each(|s| rules(s, out));
    }
    match &schema.shape {
        Shape::Object(o) => {
            o.fields.iter().for_each(|(_, s)| rules(s, out));
            o.values.iter().for_each(|s| rules(s, out));
        }
        Shape::List(l) => rules(&l.items, out),
        _ => {}
    }
}

#[test]
fn every_committed_rule_is_understood() {
    let mut all = Vec::new();
    for row in KINDS {
        row.versions.iter().for_each(|v| rules(&schema::of(row.id, v), &mut all));
    }
    all.sort();
    all.dedup();
    assert!(all.len() > 90, "only {} rules were found", all.len());
    for rule in all {
        assert_eq!(unsupported(&rule), Ok(vec![]), "{rule}");
    }
}

#[test]
fn the_language() {
    let value = json!({"a": [1, 2, 3], "s": "x.y", "m": {"k": "v"}, "d": "1h30m", "n": null});
    let holds = |rule: &str| evaluate(rule, &value, None).unwrap_or_else(|e| panic!("{rule}: {e}"));
    for yes in [
        "self.a.all(x, x > 0) && self.a.exists(x, x == 3) && !self.a.exists_one(x, x > 1)",
        "size(self.a) == 3 && self.a.filter(x, x > 1).size() == 2 && self.a[0] + 1 == 2",
        "has(self.m.k) && !has(self.m.z) && !has(self.n) && 'k' in self.m",
        "duration(self.d) == duration('90m') && duration('1.5s') > duration('1s')",
        r#"self.s.matches(r"""^x\.y$""") && self.s.matches('^x\\.y$')"#,
        r#"self.s.split('.')[1] == "y""#,
        "self.s.substring(2) == 'y' && self.s.substring(0, 1) == 'x' && 2 + 3 * 4 == 14",
        "(has(self.z) ? self.z : []).size() == 0 && self.s in ['x.y', \"z\"]",
        "self.z == 1 || true",
        "isURL('http://a') && url('oci://a').getScheme() == 'oci' && !isURL('a b')",
        "int('7') == 7 && isIP('::1') && !isIP('1.2.3') && -1 < 0",
    ] {
        assert!(holds(yes), "{yes}");
    }
    assert!(matches!(evaluate("self.z == 1", &value, None), Err(CelError::NoSuchField(_))));
    assert!(evaluate("self.a ==", &value, None).is_err());
    assert_eq!(evaluate("self == oldSelf", &json!(1), None), Ok(true));
    assert_eq!(evaluate("self == oldSelf", &json!(1), Some(&json!(2))), Ok(false));
}
