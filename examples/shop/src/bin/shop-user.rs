// SPDX-License-Identifier: Apache-2.0
//! The shop's user service.

use std::process::ExitCode;

use clap::Parser;
use shop::config::Common;

/// The shop's user service
#[derive(Debug, Parser)]
#[command(name = "shop-user", version)]
struct Config {
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let config = Config::parse();
    shop::server::run("user", shop::user::serve(config.common))
}
