// SPDX-License-Identifier: Apache-2.0
//! `weft drain INSTANCE`: requests go to others from now on, what it has it finishes.

use anyhow::Result;
use http::Method;
use serde_json::Value;
use weft_server::drain::DrainAsk;

use crate::cli::{ClientArgs, Output};
use crate::client::Api;
use crate::exit::CheckFailed;
use crate::print;

#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// A pod's name; of a registration at the Consul door its id, or NODE/ID.
    pub instance: String,
    /// Namespace, where several have such an instance.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Let it be picked again.
    #[arg(long)]
    pub undo: bool,
    /// Why, for others to read.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub reason: String,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub async fn run(args: &DrainArgs) -> Result<()> {
    let ask = DrainAsk {
        instance: args.instance.clone(),
        namespace: args.namespace.clone(),
        undo: args.undo,
        reason: args.reason.clone(),
    };
    let body = Some(serde_json::to_vec(&ask)?);
    let api = Api::new(&args.client.server);
    let done = api.call(Method::POST, "/v1/weft/drain", "application/json", body).await?.ok()?;
    let list = |key: &str| {
        let all = done.get(key).and_then(Value::as_array).into_iter().flatten();
        all.map(print::cell).collect::<Vec<_>>().join(", ")
    };
    match args.client.output {
        Output::Json => print::json(&done),
        Output::Yaml => print::yaml(&done)?,
        Output::Table | Output::Wide => {
            let services = list("services");
            match args.undo {
                true => crate::say!("{} of {services} takes requests again", args.instance),
                false => crate::say!(
                    "{} of {services} is picked no more; what it has it finishes",
                    args.instance
                ),
            }
        }
    }
    match list("behind") {
        behind if behind.is_empty() => Ok(()),
        behind => Err(CheckFailed(format!("not heard yet by {behind}")).into()),
    }
}
