// SPDX-License-Identifier: Apache-2.0
//! The shop's order service.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    shop::server::run("order", shop::order::serve(shop::order::Config::parse()))
}
