// SPDX-License-Identifier: Apache-2.0
//! One host, path and method: 200 and more rows, each a form that some server reads otherwise.

use super::*;

fn check(
    build: impl FnOnce(http::request::Builder) -> http::request::Builder,
) -> Result<String, String> {
    let request = build(Request::builder()).body(()).map_err(|e| e.to_string())?;
    canonical(&request, None).map(|a| match a.port {
        Some(port) => format!("{}:{port}", a.host),
        None => a.host,
    })
}

#[test]
fn one_authority_in_one_form() {
    let host = |h: &'static str| check(|b| b.uri("/").header("host", h));
    assert_eq!(host("Users.Example.com.:80").unwrap(), "users.example.com:80");
    assert_eq!(host("[::1]:80").unwrap(), "::1:80");
    assert!(check(|b| b.uri("/")).is_err());
    assert!(check(|b| b.uri("/").header("host", "a").header("host", "a")).is_err());
    // The target wins in HTTP/1.1; in HTTP/2 the two must agree.
    let both = |v| check(move |b| b.version(v).uri("http://a/").header("host", "b"));
    assert_eq!(both(Version::HTTP_11).unwrap(), "a");
    assert!(both(Version::HTTP_2).is_err());
}

#[test]
fn readings_are_what_other_servers_make_of_a_path() {
    let read = |path: &str| readings(path);
    for plain in ["/", "/a/b.c", "/a~b/-_", "/a:b@c!$&'()*+,="] {
        assert!(read(plain).is_empty(), "{plain}");
    }
    assert_eq!(read("/%61dmin"), ["/admin"]);
    assert_eq!(read("/a%2fb"), ["/a%2Fb", "/a/b"]);
    assert_eq!(read("//admin"), ["/admin"]);
    assert_eq!(read("/admin;x=1/y"), ["/admin/y"]);
    assert_eq!(read("/caf%c3%a9"), ["/caf%C3%A9"]);
    assert!(read("/%25%20").is_empty(), "read as it is");
    assert!(read("//%61%2f;b").contains(&"/a/".to_owned()));
}

/// What becomes of a path: `keep` it is one path for everybody, `refuse` it is 400, or what else
/// it may be read as.
const PATHS: &str = include_str!("paths.txt");

fn verdict(path: &str) -> String {
    if check_path(path, false).is_err() {
        return "refuse".into();
    }
    let all = readings(path);
    all.last().map_or_else(|| "keep".into(), Clone::clone)
}

#[test]
fn reg_32_33_34_35_36_paths_have_one_reading_or_say_which_others() {
    let (mut rows, mut wrong) = (0, Vec::new());
    for line in PATHS.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (path, expected) = line.rsplit_once(' ').unwrap();
        rows += 1;
        let got = verdict(path);
        if got != expected {
            wrong.push(format!("{path}: {got}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {rows} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows >= 150, "{rows} rows");
}

/// Hosts: the canonical form, or `refuse`.
const HOSTS: &[(&str, &str)] = &[
    ("a", "a"),
    ("A", "a"),
    ("a.", "a"),
    ("A.", "a"),
    ("a:80", "a:80"),
    ("A.:80", "a:80"),
    ("a:080", "a:80"),
    ("a:0", "a:0"),
    ("a:65535", "a:65535"),
    ("a:65536", "refuse"),
    ("a:000080", "refuse"),
    ("a:", "refuse"),
    ("a: 80", "refuse"),
    ("a:80 ", "refuse"),
    ("a:+80", "refuse"),
    ("a:-80", "refuse"),
    ("a:0x50", "refuse"),
    ("a:80:80", "refuse"),
    ("a:b", "refuse"),
    ("", "refuse"),
    (".", "refuse"),
    ("..", "refuse"),
    ("a..", "refuse"),
    ("a..b", "refuse"),
    (".a", "refuse"),
    (" a", "refuse"),
    ("a b", "refuse"),
    ("a\tb", "refuse"),
    ("a,b", "refuse"),
    ("a;b", "refuse"),
    ("a/b", "refuse"),
    ("a\\b", "refuse"),
    ("a?b", "refuse"),
    ("a#b", "refuse"),
    ("a%62", "refuse"),
    ("a%2eb", "refuse"),
    ("user@a", "refuse"),
    ("user:pass@a", "refuse"),
    ("a@", "refuse"),
    ("@a", "refuse"),
    ("http://a", "refuse"),
    ("*", "refuse"),
    ("*.a", "refuse"),
    ("a\"", "refuse"),
    ("<a>", "refuse"),
    ("a'b", "refuse"),
    ("a|b", "refuse"),
    ("[::1]", "::1"),
    ("[::1]:80", "::1:80"),
    ("[0:0:0:0:0:0:0:1]", "::1"),
    ("[::FFFF:1.2.3.4]", "::ffff:1.2.3.4"),
    ("[::1", "refuse"),
    ("::1", "refuse"),
    ("[::1]x", "refuse"),
    ("[::1]:", "refuse"),
    ("[fe80::1%eth0]", "refuse"),
    ("[fe80::1%25eth0]", "refuse"),
    ("[1.2.3.4]", "refuse"),
    ("[]", "refuse"),
    ("[a]", "refuse"),
    ("1.2.3.4", "1.2.3.4"),
    ("1.2.3.4:80", "1.2.3.4:80"),
];

#[test]
fn reg_37_hosts_have_one_form() {
    for (given, expected) in HOSTS {
        let got = check(|b| b.uri("/").header("host", *given));
        assert_eq!(got.unwrap_or_else(|_| "refuse".into()), *expected, "{given:?}");
    }
}

#[test]
fn reg_30_32_34_ambiguous_targets_are_refused() {
    let path = |p: &'static str| check(|b| b.uri(p).header("host", "a"));
    for good in ["/", "/a/b", "/a//b", "/a%2fb", "/.well-known/x", "/a..b", "/...", "/a;x=1"] {
        assert!(path(good).is_ok(), "{good}");
    }
    for bad in ["/a/../b", "/..", "/%2e%2e/b", "/..;/b", "/a\\b", "/a%5cb", "/%00", "/a%2f..%2fb"] {
        assert!(path(bad).is_err(), "{bad}");
    }
    assert!(check(|b| b.method("get").uri("/").header("host", "a")).is_err());
    assert!(check(|b| b.method("PROPFIND").uri("/").header("host", "a")).is_ok());
}

#[test]
fn reg_30_methods_are_compared_exactly() {
    let method = |m: &str| check(|b| b.method(m).uri("/").header("host", "a"));
    for good in ["GET", "PROPFIND", "M-SEARCH", "X_1"] {
        assert!(method(good).is_ok(), "{good}");
    }
    for bad in ["get", "Get", "gET", "pROPFIND", "GEt"] {
        assert!(method(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_read_quickly_is_read_as_the_model_reads_it() {
    let long = ["a".repeat(253), "a".repeat(254)];
    let mut quick = 0;
    for text in [
        "a",
        "a.b",
        "a-.b",
        "-a",
        "a..b",
        ".a",
        "a.",
        "",
        "A",
        "a_b",
        "1.2.3.4",
        "1.2.3.4:80",
        "a:0",
        "a:65535",
        "a:65536",
        "a:",
        "a:+1",
        "a:000001",
        "a:80:80",
        "[::1]",
        "a b",
        "a/b",
        "ä",
        &long[0],
        &long[1],
    ] {
        if let Some(read) = super::usual(text) {
            assert_eq!(Some(read), weft_model::decide::Authority::parse(text), "{text:?}");
            quick += 1;
        }
    }
    assert_eq!(quick, 9);
}
