// SPDX-License-Identifier: Apache-2.0
//! Texts in, documents with their lines out; bombs and broken texts refused.

use serde_json::json;

use super::*;

const TWO: &str = "# a comment\n---\nkind: A\nspec:\n  on: yes\n  mode: 0644\n\
    \x20 list:\n    - x: 1\n    \
    - y: 2\n---\n# nothing\n---\nkind: B\nmetadata:\n  labels:\n    a/b: c\n";

#[test]
fn yaml_documents_know_their_lines() {
    let (docs, issues) = documents(TWO.as_bytes(), Format::Yaml);
    assert!(issues.is_empty(), "{issues}");
    assert_eq!(docs.iter().map(|d| d.line).collect::<Vec<_>>(), [3, 13]);
    assert_eq!(docs[0].value["spec"]["mode"], json!(420));
    assert_eq!(docs[0].value["spec"]["list"], json!([{"x": 1}, {"y": 2}]));
    let line = |line, path: &str| line_of(TWO, line, &FieldPath::new(path)).unwrap();
    assert_eq!(line(3, "spec"), 4);
    assert_eq!(line(3, "spec.list[1].y"), 9);
    assert_eq!(line(3, "spec.list[1].z"), 9, "a missing field is where its parent is");
    assert_eq!(line(13, "metadata.labels[\"a/b\"]"), 16);
}

#[test]
fn a_broken_document_hides_no_other() {
    let text = "kind: A\n---\nkind: [B\nx: 1\n---\nkind: C\n";
    let (docs, issues) = documents(text.as_bytes(), Format::Yaml);
    assert_eq!(docs.len(), 2);
    assert_eq!(issues.0.len(), 1);
    let message = issues.0[0].to_string();
    assert!(message.contains("at line 4, column 2"), "{message}");
}

#[test]
fn keys_given_twice_are_told() {
    let doc = document(br#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":1}]}"#, Format::Json).unwrap();
    let paths: Vec<_> = doc.duplicates.iter().map(ToString::to_string).collect();
    assert_eq!(paths, ["a.b", "c[0].d"]);
    assert_eq!(doc.value["a"]["b"], 2);
    let error = document(b"a: 1\nb: 2\na: 3\n", Format::Yaml).unwrap_err().to_string();
    assert!(error.contains("line 3") && error.contains("duplicate"), "{error}");
}

#[test]
fn reg_56_a_document_that_nests_too_deeply_is_refused() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let nested = |depth| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        assert!(document(nested(64).as_bytes(), Format::Json).is_ok());
        let read = document(nested(70).as_bytes(), Format::Json).map(|_| ());
        let error = read.expect_err("it is taken").to_string();
        assert!(error.contains("deeper than 64"), "{error}");
    }
}

#[test]
fn reg_56_yaml_that_nests_too_deeply_is_refused() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let nested = |depth| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        assert!(document(nested(60).as_bytes(), Format::Yaml).is_ok());
        let read = document(nested(70).as_bytes(), Format::Yaml).map(|_| ());
        let error = read.expect_err("it is taken").to_string();
        assert!(error.contains("depth"), "{error}");
    }
}

#[test]
fn bombs_are_refused() {
    let deep = "[".repeat(100_000);
    assert!(document(deep.as_bytes(), Format::Json).is_err());
    assert!(document(deep.as_bytes(), Format::Yaml).is_err());
    let mut lol = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(",");
        lol.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert!(document(lol.as_bytes(), Format::Yaml).is_err());
}

#[test]
fn kinds_are_named_or_offered() {
    let kind = |v: &str, k: &str| kind_of(&json!({"apiVersion": v, "kind": k}));
    assert_eq!(kind("apps/v1", "Deployment").unwrap(), (KindId::Deployment, "v1"));
    let error = kind("apps/v1", "Deploymnet").unwrap_err().to_string();
    assert!(error.contains("did you mean \"Deployment\" in \"apps/v1\"?"), "{error}");
    let error = kind("apps/v1beta2", "Deployment").unwrap_err().to_string();
    assert!(error.contains("use \"apps/v1\""), "{error}");
    let error = kind_of(&json!({"kind": "Service"})).unwrap_err().to_string();
    assert!(error.starts_with("apiVersion: required value"), "{error}");
}

#[test]
fn lists_are_their_items() {
    let text = br#"{"kind":"List","apiVersion":"v1","items":[{"kind":"A"},{"kind":"B"}]}"#;
    assert_eq!(documents(text, Format::Json).0.len(), 2);
    assert_eq!(documents(text, Format::Yaml).0.len(), 2);
}

#[test]
fn near_words_are_found_and_far_ones_not() {
    let among = ["selector", "sessionAffinity", "ports"];
    assert_eq!(nearest("selectro", among.into_iter()), Some("selector"));
    assert_eq!(nearest("SELECTOR", among.into_iter()), Some("selector"));
    assert_eq!(nearest("sessionafinity", among.into_iter()), Some("sessionAffinity"));
    assert_eq!(nearest("unicorn", among.into_iter()), None);
}
