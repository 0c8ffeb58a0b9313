// SPDX-License-Identifier: Apache-2.0
//! `weft server --consul-…`: what clients of Consul's API may do.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use weft_server::consul::{Access, AclConfig};

use super::consul_doors::{ConsulDoors, Openings};

/// What holds where no rule of an access list speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConsulAcl {
    /// No access lists: everybody on this machine may do everything.
    Off,
    /// Access lists; what no rule speaks of is allowed.
    Allow,
    /// Access lists; what no rule speaks of is refused.
    Deny,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Consul's API")]
pub struct ConsulArgs {
    /// Access lists of Consul's API: tokens, policies and roles, and what holds where none speaks.
    #[arg(long, env = "WEFT_CONSUL_ACL", value_enum, default_value_t = ConsulAcl::Off)]
    pub consul_acl: ConsulAcl,
    /// File with the secret of a token that may do everything; without it the first client to ask
    /// `PUT /v1/acl/bootstrap` gets one.
    #[arg(long, env = "WEFT_CONSUL_MANAGEMENT_TOKEN_FILE", value_name = "FILE")]
    pub consul_management_token_file: Option<PathBuf>,
    /// Lets clients end this server with `PUT /v1/agent/leave`.
    #[arg(long)]
    pub consul_leave: bool,
    #[command(flatten)]
    pub doors: ConsulDoors,
}

// === impl ConsulArgs ===

impl ConsulArgs {
    /// The ways to Consul's API besides its port.
    ///
    /// # Errors
    /// When one would let anybody in.
    pub fn openings(&self) -> Result<Openings> {
        self.doors.openings(self.consul_acl == ConsulAcl::Deny)
    }

    /// # Errors
    /// When the token's file cannot be read, or is of no use.
    pub fn access(&self) -> Result<Access> {
        let initial_management = match &self.consul_management_token_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| {
                    format!("the management token in {} cannot be read", path.display())
                })?;
                let secret = text.trim();
                if secret.len() < 16 {
                    bail!(
                        "the management token in {} is shorter than 16 characters; write a UUID \
                         into it",
                        path.display()
                    );
                }
                Some(Arc::from(secret))
            }
        };
        let acl = match (self.consul_acl, initial_management.is_some()) {
            (ConsulAcl::Off, true) => {
                bail!("a management token means nothing without --consul-acl allow or deny")
            }
            (ConsulAcl::Off, false) => None,
            (on, _) => {
                Some(AclConfig { default_allow: on == ConsulAcl::Allow, initial_management })
            }
        };
        let leave = self.consul_leave.then(Arc::default);
        Ok(Access { acl, leave, ca: None, far: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::consul_doors::test_doors;

    #[test]
    fn other_machines_come_in_only_where_what_no_rule_speaks_of_is_refused() {
        let opened = |consul_acl| {
            let args = ConsulArgs {
                consul_acl,
                consul_management_token_file: None,
                consul_leave: false,
                doors: test_doors(),
            };
            args.openings().map_err(|why| why.to_string())
        };
        for open in [ConsulAcl::Off, ConsulAcl::Allow] {
            let why = opened(open).unwrap_err();
            assert!(why.contains("add --consul-acl deny"), "{why}");
        }
        assert!(opened(ConsulAcl::Deny).is_ok());
    }
}
