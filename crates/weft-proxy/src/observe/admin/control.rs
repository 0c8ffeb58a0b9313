// SPDX-License-Identifier: Apache-2.0
//! What the words behind `/drain_listeners` and `/logging` ask for, as Envoy spells them. Called by
//! the admin door; changes nothing itself but the filter of the log.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::text;
use crate::config::ProxyConfig;
use crate::worker::Leave;

/// # Errors
/// What weft does not do.
pub fn leave(query: &str) -> Result<Leave, String> {
    let mut leave = Leave::default();
    for word in query.split('&').filter(|word| !word.is_empty()) {
        match word {
            "graceful" => leave.graceful = true,
            "inboundonly" => leave.inbound = true,
            "skip_exit" => leave.stay = true,
            _ => return Err(format!("{word:?} is none of: graceful, inboundonly, skip_exit\n")),
        }
    }
    match leave {
        Leave { stay: true, graceful: false, .. } => {
            Err("skip_exit says what comes after graceful: ask for both\n".into())
        }
        Leave { inbound: true, graceful: true, .. } => {
            let why = "clients of one direction cannot be told alone: inboundonly without graceful";
            Err(format!("{why}\n"))
        }
        leave => Ok(leave),
    }
}

/// Shows the levels, or sets them and shows what they are then.
pub fn logging(config: &ProxyConfig, query: &str) -> Response<Full<Bytes>> {
    let changed = filter(query).and_then(|changes| {
        let mut shown = (config.log_filter)(None)?;
        if let Some(changes) = changes {
            shown = (config.log_filter)(Some(&changed_by(&shown, &changes)))?;
        }
        Ok(shown)
    });
    match changed {
        Ok(shown) => text(StatusCode::OK, format!("active log filter:\n  {shown}\n")),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

/// `None` asks for no change; a change without a name is meant for all.
fn filter(query: &str) -> Result<Option<Vec<(String, &'static str)>>, String> {
    let mut out = Vec::new();
    for word in query.split('&').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').ok_or_else(|| {
            format!("{word:?}: write ?level=LEVEL, ?NAME=LEVEL or ?paths=NAME:LEVEL,NAME:LEVEL")
        })?;
        match name {
            "level" => out.push((String::new(), level(value)?)),
            "paths" => {
                for pair in value.split(',') {
                    let (name, said) =
                        pair.rsplit_once(':').ok_or_else(|| format!("{pair:?} has no level"))?;
                    out.push((target(name)?, level(said)?));
                }
            }
            name => out.push((target(name)?, level(value)?)),
        }
    }
    Ok((!out.is_empty()).then_some(out))
}

/// Envoy's levels, and ours.
fn level(text: &str) -> Result<&'static str, String> {
    Ok(match text {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        _ => return Err(format!("{text:?} is none of: trace, debug, info, warning, error, off")),
    })
}

/// A crate, or a module of one.
fn target(name: &str) -> Result<String, String> {
    let name = name.replace('-', "_").replace("%3A", ":");
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':');
    if name.is_empty() || !name.bytes().all(good) {
        return Err(format!("{name:?} is no crate or module, as in weft_proxy::tcp"));
    }
    Ok(name)
}

fn changed_by(shown: &str, changes: &[(String, &'static str)]) -> String {
    let mut all: Vec<String> = shown.split(',').map(|part| part.trim().to_owned()).collect();
    for (name, level) in changes {
        if name.is_empty() {
            // All means all, whatever was said of one before.
            all = vec![(*level).to_owned()];
            continue;
        }
        all.retain(|part| part.split_once('=').is_none_or(|(known, _)| known != name));
        all.push(format!("{name}={level}"));
    }
    all.retain(|part| !part.is_empty());
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_changed_as_envoy_spells_it() {
        let of = |shown: &str, query: &str| {
            filter(query).map(|changes| changed_by(shown, &changes.unwrap_or_default()))
        };
        assert_eq!(of("warn", "level=debug").unwrap(), "debug");
        assert_eq!(of("warn,weft_proxy=debug", "level=info").unwrap(), "info");
        let one = of("warn", "weft_proxy::tcp=trace").unwrap();
        assert_eq!(one, "warn,weft_proxy::tcp=trace");
        assert_eq!(of(&one, "weft-proxy::tcp=critical").unwrap(), "warn,weft_proxy::tcp=error");
        let two = of("warn", "paths=weft_xds:info,weft_proxy::h2:off").unwrap();
        assert_eq!(two, "warn,weft_xds=info,weft_proxy::h2=off");
        assert_eq!(of("warn", "").unwrap(), "warn");
        for bad in ["level", "level=loud", "a b=debug", "paths=weft_xds", "x=[{y}]", "=debug"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_drains_is_said_in_words() {
        assert_eq!(leave("").unwrap(), Leave::default());
        assert!(leave("graceful&skip_exit").unwrap().stay);
        assert!(leave("inboundonly").unwrap().inbound);
        for bad in ["skip_exit", "graceful&inboundonly", "gracefully", "graceful=1"] {
            assert!(leave(bad).is_err(), "{bad}");
        }
    }
}
