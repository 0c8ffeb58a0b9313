// SPDX-License-Identifier: Apache-2.0
//! The shop's product service.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    shop::server::run("product", shop::product::serve(shop::product::Config::parse()))
}
