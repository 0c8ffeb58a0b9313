// SPDX-License-Identifier: Apache-2.0
//! Matchers of texts, headers, paths and query parameters.

use weft_model::{Match, NamedMatch, PathMatch, Regex, Share, StringMatch};

use crate::read::Message;

/// `type.matcher.v3.StringMatcher`.
pub fn string(message: &Message<'_>) -> Option<StringMatch> {
    let no_case = message.flag("ignore_case").unwrap_or(false);
    let special = |text: &str, before: &str, after: &str| {
        let case = if no_case { "(?i)" } else { "" };
        let source = format!("{case}{before}{}{after}", regex::escape(text));
        expression(message, "safe_regex", &source)
    };
    if let Some(text) = message.text("exact") {
        return if no_case { special(text, "", "") } else { Some(StringMatch::Exact(text.into())) };
    }
    if let Some(text) = message.text("prefix") {
        return if no_case {
            special(text, "", ANYTHING)
        } else {
            Some(StringMatch::Prefix(text.into()))
        };
    }
    if let Some(text) = message.text("suffix") {
        return special(text, ANYTHING, "");
    }
    if let Some(text) = message.text("contains") {
        return special(text, ANYTHING, ANYTHING);
    }
    safe_regex(message, "safe_regex").map(StringMatch::Regex)
}

const AUTHORITY: &str = ":authority";
/// Any bytes.
const ANYTHING: &str = "(?s-u:.*)";

fn expression(message: &Message<'_>, field: &str, source: &str) -> Option<StringMatch> {
    match Regex::new(source) {
        Ok(regex) => Some(StringMatch::Regex(regex)),
        Err(why) => {
            message.error(field, why);
            None
        }
    }
}

/// `type.matcher.v3.RegexMatcher`: matches the whole text.
pub fn safe_regex(message: &Message<'_>, field: &str) -> Option<Regex> {
    let source = regex_source(message, field)?;
    match Regex::new(source) {
        Ok(regex) => Some(regex),
        Err(why) => {
            message.error(field, why);
            None
        }
    }
}

/// The expression of a `RegexMatcher`.
pub fn regex_source<'a>(message: &'a Message<'_>, field: &'a str) -> Option<&'a str> {
    let item = message.item(field)?;
    let map = item.value.as_object()?;
    let unknown = map.keys().find(|k| !matches!(k.as_str(), "regex" | "google_re2" | "googleRe2"));
    if let Some(unknown) = unknown {
        message.unsupported(field, format!("an expression has no field {unknown:?}"));
    }
    let source = map.get("regex").and_then(serde_json::Value::as_str);
    if source.is_none() {
        message.error(field, "it has no regex");
    }
    source
}

/// A route's match. `None` when a part of it cannot be said, which was reported.
pub fn of_route(message: &Message<'_>) -> Option<Match> {
    let mut out = Match { path: path(message)?, ..Match::default() };
    let mut whole = true;
    message.each("headers", |header| whole &= put_header(&header, &mut out).is_some());
    message.each("query_parameters", |query| {
        let Some(name) = query.text("name") else { return };
        let value = match query.flag("present_match") {
            Some(true) => Some(StringMatch::Present),
            Some(false) => {
                query.unsupported("present_match", "weft cannot ask that a parameter is absent");
                whole = false;
                None
            }
            None => query.message("string_match").and_then(|m| string(&m)),
        };
        let value = value.unwrap_or(StringMatch::Present);
        if let Some(text) = encoded(&query) {
            // Envoy compares what was sent, letter by letter.
            let why = format!("{text:?}: queries are compared decoded; write what it stands for");
            query.unsupported("string_match", why);
            whole = false;
        }
        out.query.push(NamedMatch { name: name.into(), value });
    });
    if message.is_set("grpc") {
        let value = expression(message, "grpc", r"application/grpc(\+.*)?")?;
        out.headers.push(NamedMatch { name: "content-type".into(), value });
    }
    if let Some(fraction) = message.message("runtime_fraction")
        && share(&fraction, "default_value").is_some_and(|s| s != Share::ALL)
    {
        let why = "a match takes all that fits or is left out; use weighted_clusters for a part";
        message.unsupported("runtime_fraction", why);
        whole = false;
    }
    if message.is_set("tls_context") {
        let why = "of clients with certificates only; RBAC can ask for one (authenticated)";
        message.error("tls_context", why);
    }
    // A match without a part of what it asks for would take more.
    (whole && message.is_read()).then_some(out)
}

/// A text of a query's matcher that only something encoded has: a `%`, or a `+` for a blank.
fn encoded(query: &Message<'_>) -> Option<String> {
    let matcher = query.message("string_match")?;
    let texts = ["exact", "prefix", "suffix", "contains"].into_iter();
    let mut texts = texts.filter_map(|field| matcher.text(field));
    if let Some(text) = texts.find(|text| text.contains(['%', '+'])) {
        return Some(text.to_owned());
    }
    let regex = matcher.message("safe_regex")?;
    regex.text("regex").filter(|source| source.contains('%')).map(str::to_owned)
}

fn path(message: &Message<'_>) -> Option<Option<PathMatch>> {
    let case = message.flag("case_sensitive").unwrap_or(true);
    if let Some(text) = message.text("prefix") {
        let text = text.into();
        let path =
            if case { PathMatch::StringPrefix(text) } else { PathMatch::StringPrefixNoCase(text) };
        return Some(Some(path));
    }
    if let Some(text) = message.text("path") {
        let text = text.into();
        return Some(Some(if case {
            PathMatch::Exact(text)
        } else {
            PathMatch::ExactNoCase(text)
        }));
    }
    if let Some(text) = message.text("path_separated_prefix") {
        if !case {
            message.unsupported("case_sensitive", "not for path_separated_prefix");
        }
        return Some(Some(PathMatch::ElementPrefix(text.into())));
    }
    if message.is_set("safe_regex") {
        return safe_regex(message, "safe_regex").map(|r| Some(PathMatch::Regex(r)));
    }
    for other in ["connect_matcher", "path_match_policy"] {
        if let Some(matcher) = message.message(other) {
            matcher.waive();
            message.unsupported(other, "weft matches by prefix, path, safe_regex or element");
            return None;
        }
    }
    message.error("prefix", "a match needs prefix, path, safe_regex or path_separated_prefix");
    None
}

/// Adds one `HeaderMatcher` to a match.
fn put_header(header: &Message<'_>, out: &mut Match) -> Option<()> {
    let (named, inverted) = named_header(header)?;
    let slot = match (&*named.name, inverted) {
        (":method", false) => &mut out.method,
        (":scheme", false) => &mut out.scheme,
        (AUTHORITY, false) => &mut out.authority,
        (name, _) if name.starts_with(':') && name != AUTHORITY => {
            header
                .unsupported("name", format!("{name} cannot be matched so; use the path's match"));
            return None;
        }
        (_, true) => {
            out.headers.extend(asked_too(header, &named));
            out.without_headers.push(named);
            return Some(());
        }
        (_, false) => {
            out.headers.push(named);
            return Some(());
        }
    };
    if slot.replace(named.value).is_some() {
        header.unsupported("name", format!("{} is asked for twice", named.name));
        return None;
    }
    Some(())
}

/// What else has to hold where a matcher must not: a header that is missing has no value that
/// could be another one, unless it counts as an empty one.
pub fn asked_too(header: &Message<'_>, inverted: &NamedMatch) -> Option<NamedMatch> {
    let empty = header.flag("treat_missing_header_as_empty") == Some(true);
    let asks = inverted.value != StringMatch::Present && !empty;
    asks.then(|| NamedMatch { name: inverted.name.clone(), value: StringMatch::Present })
}

/// `route.v3.HeaderMatcher`, and whether it must not hold.
pub fn named_header(header: &Message<'_>) -> Option<(NamedMatch, bool)> {
    let name = header.text("name")?.to_ascii_lowercase();
    // HTTP/2 has no line of that name; what is asked for is the same in both versions.
    let name = if name == "host" { AUTHORITY.to_owned() } else { name };
    let inverted = header.flag("invert_match").unwrap_or(false);
    // Inverted, it is what `asked_too` leaves out.
    if header.flag("treat_missing_header_as_empty") == Some(true) && !inverted {
        header
            .unsupported("treat_missing_header_as_empty", "a header that is missing fits nothing");
    }
    let quoted = |before: &str, field: &str, after: &str| {
        let text = header.text(field)?;
        expression(header, field, &format!("{before}{}{after}", regex::escape(text)))
    };
    if let Some(present) = header.flag("present_match") {
        let named = NamedMatch { name: name.into(), value: StringMatch::Present };
        return Some((named, inverted == present));
    }
    let value = if let Some(matcher) = header.message("string_match") {
        string(&matcher)?
    } else if let Some(text) = header.text("exact_match") {
        StringMatch::Exact(text.into())
    } else if let Some(text) = header.text("prefix_match") {
        StringMatch::Prefix(text.into())
    } else if header.is_set("safe_regex_match") {
        StringMatch::Regex(safe_regex(header, "safe_regex_match")?)
    } else if header.is_set("suffix_match") {
        quoted(ANYTHING, "suffix_match", "")?
    } else if header.is_set("contains_match") {
        quoted(ANYTHING, "contains_match", ANYTHING)?
    } else if let Some(range) = header.message("range_match") {
        range.waive();
        header.unsupported("range_match", "weft matches headers as text");
        return None;
    } else {
        StringMatch::Present
    };
    Some((NamedMatch { name: name.into(), value }, inverted))
}

/// `type.v3.FractionalPercent`.
pub fn share(message: &Message<'_>, field: &str) -> Option<Share> {
    let percent = message.message(field)?;
    let part = percent.number::<u64>("numerator").unwrap_or(0);
    let whole = match percent.word("denominator").as_deref().unwrap_or("HUNDRED") {
        "HUNDRED" => 100,
        "TEN_THOUSAND" => 10_000,
        "MILLION" => 1_000_000,
        other => {
            percent.error("denominator", format!("{other:?} is none"));
            100
        }
    };
    Some(Share::of(part, whole))
}
