// SPDX-License-Identifier: Apache-2.0
//! `weft token create|list|delete`: join tokens for machines that become hosts of the mesh.
//!
//! The server makes them and keeps their hashes; this only asks and prints. A new token is shown
//! once.

use anyhow::{Result, anyhow};
use http::Method;
use serde_json::Value;
use weft_server::tokens::TokenAsk;

use crate::cli::{ClientArgs, Output, TokenCommand, TokenCreateArgs};
use crate::client::Api;
use crate::client::objects::encoded;
use crate::exit::Usage;
use crate::print;

const PATH: &str = "/v1/weft/tokens";

pub async fn run(command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create(args) => create(args).await,
        TokenCommand::List(client) => list(client).await,
        TokenCommand::Delete { id, client } => {
            let path = format!("{PATH}/{}", encoded(id));
            let answer = Api::new(&client.server).call(Method::DELETE, &path, "*/*", None).await?;
            answer.ok()?;
            crate::say!("token {id} deleted");
            Ok(())
        }
    }
}

async fn create(args: &TokenCreateArgs) -> Result<()> {
    let ask = TokenAsk {
        host: args.host.clone(),
        ttl_seconds: args.ttl.as_deref().map(seconds).transpose()?,
        allow: args.allow.clone(),
    };
    let body = serde_json::to_vec(&ask)?;
    let api = Api::new(&args.client.server);
    let made = api.call(Method::POST, PATH, "application/json", Some(body)).await?.ok()?;
    match args.client.output {
        Output::Json => print::json(&made),
        Output::Yaml => print::yaml(&made)?,
        Output::Table | Output::Wide => {
            let text = |key: &str| made.get(key).map(print::cell).unwrap_or_default();
            print::print_text(&format!("{}\n", text("token")));
            let name = args.host.as_deref().map(|h| format!(" --name {h}")).unwrap_or_default();
            eprintln!("Shown once; good for one machine, for {} s.", text("expires_in_s"));
            match text("server").as_str() {
                "" => eprintln!(
                    "No other machine reaches this server yet: start it with `--agents-bind \
                     ADDRESS`, the address that the machine will name in `weft agent --server`."
                ),
                server => eprintln!(
                    "There:\n  weft agent --server {server}{name} --token {}",
                    text("token")
                ),
            }
        }
    }
    Ok(())
}

async fn list(client: &ClientArgs) -> Result<()> {
    let all = Api::new(&client.server).get(PATH).await?;
    match client.output {
        Output::Json => print::json(&all),
        Output::Yaml => print::yaml(&all)?,
        Output::Table | Output::Wide => {
            let header = ["ID", "HOST", "ALLOWED", "STATE", "EXPIRES IN"].map(str::to_owned);
            let rows = all.get("tokens").and_then(Value::as_array).cloned().unwrap_or_default();
            let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
            print::table(&header, &rows);
        }
    }
    Ok(())
}

fn row(token: &Value) -> Vec<String> {
    let cell = |key: &str| token.get(key).map(print::cell).unwrap_or_default();
    let allowed = token.get("allowed").and_then(Value::as_array);
    let allowed: Vec<String> = allowed.into_iter().flatten().map(print::cell).collect();
    let host = Some(cell("host")).filter(|h| !h.is_empty()).unwrap_or_else(|| "<any>".into());
    let left = format!("{} s", cell("expires_in_s"));
    vec![cell("id"), host, allowed.join(","), cell("state"), left]
}

/// `90`, `90s`, `30m`, `1h`.
fn seconds(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.strip_prefix(digits).unwrap_or_default() {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let value = digits.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
    let wrong = || anyhow!(Usage(format!("--ttl {text:?}: expected for example 90s, 30m or 1h")));
    value.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read_with_and_without_units() {
        for (text, want) in [("90", 90), ("90s", 90), ("30m", 1800), ("1h", 3600)] {
            assert_eq!(seconds(text).unwrap(), want, "{text}");
        }
        for bad in ["", "h", "1d", "-1", "1h30m", "99999999999999999999", "9999999999999999999h"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
