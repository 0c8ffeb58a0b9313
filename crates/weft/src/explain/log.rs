// SPDX-License-Identifier: Apache-2.0
//! `weft explain --log`: a line of the access log, in either of weft's own forms, and the
//! question that it answers. Called by the command alone; asks nobody.

use serde::Serialize;
use serde_json::Value;
use weft_proxy::observe::flags::FLAGS;

use super::Question;

/// What a line says of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The proxy that wrote it.
    pub node: String,
    pub time: String,
    pub method: String,
    pub path: String,
    pub authority: String,
    pub status: u16,
    pub flags: Vec<Meaning>,
    pub details: String,
    pub sentence: String,
    pub cluster: String,
    pub instance: String,
    pub route: String,
    pub server_name: String,
    /// The address that the client dialled.
    pub dialled: String,
    /// Of the table that decided.
    pub generation: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Meaning {
    pub flag: String,
    pub meaning: String,
}

// === impl Line ===

impl Line {
    /// # Errors
    /// What the text is instead of a line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.starts_with('{') {
            true => Self::from_json(text),
            false => Self::from_text(text),
        }
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let read: Value =
            serde_json::from_str(text).map_err(|e| format!("the line is no JSON: {e}"))?;
        let get = |key: &str| match &read[key] {
            Value::String(text) if text != "-" => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        if read.get("response_flags").is_none() {
            return Err("the line has no response_flags; it is not weft's access log".into());
        }
        Ok(Self {
            node: get("node"),
            time: get("start_time"),
            method: get("method"),
            path: get("path"),
            authority: get("authority"),
            status: get("response_code").parse().unwrap_or(0),
            flags: meanings(&get("response_flags")),
            details: get("response_code_details"),
            sentence: get("sentence"),
            cluster: get("upstream_cluster"),
            instance: get("upstream_host"),
            route: get("route_name"),
            server_name: get("requested_server_name"),
            dialled: get("downstream_local_address"),
            generation: get("generation").parse().ok(),
        })
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let words = words(text);
        let get = |at: usize| {
            words.get(at).map(String::as_str).filter(|w| *w != "-").unwrap_or_default().to_owned()
        };
        let request = get(1);
        let mut request = request.split(' ');
        let (method, path) = (request.next(), request.next());
        let status: u16 = match (get(2).parse(), words.len() >= 22) {
            (Ok(status), true) => status,
            _ => {
                let what = "the line is neither weft's text nor its JSON form; a format of your \
                            own is not read";
                return Err(what.into());
            }
        };
        let rest = words.get(21..).unwrap_or_default();
        let named = |name: &str| rest.iter().find_map(|w| w.strip_prefix(name)).unwrap_or_default();
        let route: Vec<&str> = rest
            .iter()
            .map(String::as_str)
            .take_while(|w| !w.starts_with("generation=") && !w.starts_with("node="))
            .filter(|w| *w != "-")
            .collect();
        let some = |text: Option<&str>| text.filter(|t| *t != "-").unwrap_or_default().to_owned();
        Ok(Self {
            node: some(Some(named("node="))),
            time: get(0),
            method: some(method),
            path: some(path),
            authority: get(14),
            status,
            flags: meanings(&get(3)),
            details: get(4),
            sentence: get(6),
            cluster: get(16),
            instance: get(15),
            route: route.join(" "),
            server_name: get(20),
            dialled: get(18),
            generation: named("generation=").parse().ok(),
        })
    }

    /// What the line's client asked; `None` when nobody routed it by rules: an opaque connection,
    /// what was no request, and what reached the called pod's own sidecar.
    pub fn question(&self, from: Option<&str>) -> Option<Question> {
        if self.method.is_empty() || self.authority.is_empty() || self.is_inbound() {
            return None;
        }
        let scheme = if self.server_name.is_empty() { "http" } else { "https" };
        let port = self.dialled.rsplit(':').next().unwrap_or_default();
        let sidecar = from.is_some() || self.node.starts_with("sidecar~");
        let host = match sidecar {
            true => self.authority.clone(),
            false => {
                let name = self.authority.rsplit_once(':').map_or(&*self.authority, |(n, _)| n);
                format!("{name}:{port}")
            }
        };
        Some(Question {
            method: self.method.clone(),
            url: format!("{scheme}://{host}{}", self.path),
            headers: vec![("host".into(), self.authority.clone())],
            from: from.map(str::to_owned),
            node: from.is_none().then(|| self.node.clone()).filter(|n| !n.is_empty()),
        })
    }

    pub fn is_inbound(&self) -> bool {
        self.cluster.starts_with("inbound|")
    }
}

fn meanings(flags: &str) -> Vec<Meaning> {
    let meaning = |flag: &str| {
        let known = FLAGS.iter().find(|(_, name, _)| *name == flag).map(|(.., what)| *what);
        let meaning = known.unwrap_or("a flag that this weft does not know").to_owned();
        Meaning { flag: flag.to_owned(), meaning }
    };
    flags.split(',').filter(|f| !f.is_empty() && *f != "-").map(meaning).collect()
}

/// Words, with what stands in quotes or square brackets as one; escapes are undone.
fn words(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        let end = match first {
            ' ' => continue,
            '"' => '"',
            '[' if out.is_empty() => ']',
            _ => ' ',
        };
        let mut word = String::new();
        if end == ' ' {
            word.push(first);
        }
        while let Some(c) = rest.next() {
            match c {
                '\\' if end == '"' => word.extend(unescaped(&mut rest)),
                c if c == end => break,
                c => word.push(c),
            }
        }
        out.push(word);
    }
    out
}

fn unescaped(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match rest.next()? {
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'u' if rest.next_if_eq(&'{').is_some() => {
            let mut digits = String::new();
            while let Some(digit) = rest.next_if(|c| c.is_ascii_hexdigit()) {
                digits.push(digit);
            }
            rest.next_if_eq(&'}');
            u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32)
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[2026-11-21T08:00:00.000Z] \"GET /users/1?x=2 HTTP/1.1\" 503 UF,URX \
        upstream_reset_before_response_started{connection_failure} - \
        \"no \\\"way\\\"\\n in\" 0 12 7 6 \
        \"127.0.0.1\" \"curl/8 x\" \"id-1\" \"localhost:8000\" \"127.64.0.3:8080\" \
        outbound|80||user.shop.svc.cluster.local - 127.0.0.1:8000 127.0.0.1:40000 - \
        HTTPRoute shop/users spec.rules[0] generation=12 node=gateway~shop~shop";

    #[test]
    fn both_forms_say_the_same() {
        let text = Line::parse(TEXT).unwrap();
        assert_eq!((&*text.method, &*text.path), ("GET", "/users/1?x=2"));
        assert_eq!(text.route, "HTTPRoute shop/users spec.rules[0]");
        assert_eq!(text.generation, Some(12));
        assert_eq!(text.sentence, "no \"way\"\n in");
        let flags: Vec<&str> = text.flags.iter().map(|m| &*m.flag).collect();
        assert_eq!(flags, ["UF", "URX"]);
        assert_eq!(text.flags[0].meaning, "connecting to the upstream failed");
        let json = serde_json::json!({
            "start_time": "2026-11-21T08:00:00.000Z", "method": "GET", "path": "/users/1?x=2",
            "response_code": 503, "response_flags": "UF,URX", "authority": "localhost:8000",
            "response_code_details": "upstream_reset_before_response_started{connection_failure}",
            "sentence": "no \"way\"\n in", "upstream_host": "127.64.0.3:8080",
            "upstream_cluster": "outbound|80||user.shop.svc.cluster.local",
            "downstream_local_address": "127.0.0.1:8000", "requested_server_name": null,
            "route_name": "HTTPRoute shop/users spec.rules[0]", "generation": 12,
            "node": "gateway~shop~shop",
        });
        assert_eq!(Line::parse(&json.to_string()).unwrap(), text);
    }

    #[test]
    fn a_line_is_the_question_of_its_client() {
        let line = Line::parse(TEXT).unwrap();
        let asked = line.question(None).unwrap();
        assert_eq!(asked.url, "http://localhost:8000/users/1?x=2");
        assert_eq!(asked.node.as_deref(), Some("gateway~shop~shop"));
        let from = line.question(Some("shop/order")).unwrap();
        assert_eq!((from.node, from.from.as_deref()), (None, Some("shop/order")));
        let inbound = Line { cluster: "inbound|8080||".into(), ..line.clone() };
        assert!(inbound.question(None).is_none());
        assert!(Line { method: String::new(), ..line }.question(None).is_none());
        for wrong in ["", "nonsense", "{\"a\":1}", "{", "[t] \"GET / HTTP/1.1\" 200 -"] {
            assert!(Line::parse(wrong).is_err(), "{wrong}");
        }
    }
}
