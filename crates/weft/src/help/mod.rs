// SPDX-License-Identifier: Apache-2.0
//! `weft help TOPIC`: explanations that need no network. The texts are `topics/*.md`.

use anyhow::{Result, bail};
use clap::CommandFactory as _;

use crate::cli::{Cli, HelpArgs};
use crate::exit::Usage;
use crate::print;

/// Every topic: name, one line, text.
pub const TOPICS: &[(&str, &str, &str)] = &[
    ("start", "the first ten minutes", include_str!("topics/start.md")),
    ("pods", "how a Deployment runs as local processes", include_str!("topics/pods.md")),
    ("machines", "a mesh of several machines", include_str!("topics/machines.md")),
    ("ports", "every port and address weft uses", include_str!("topics/ports.md")),
    ("retries", "what is sent again, and what never is", include_str!("topics/retries.md")),
    ("flags", "response flags: why a request failed", include_str!("topics/flags.md")),
    ("mtls", "identities and encryption, and their limits here", include_str!("topics/mtls.md")),
    ("clients", "kubectl, Consul clients, dig, Prometheus", include_str!("topics/clients.md")),
    ("exit-codes", "what the exit codes mean", include_str!("topics/exit-codes.md")),
];

pub fn run(args: &HelpArgs) -> Result<()> {
    let name = args.topic.join(" ");
    if name.is_empty() || name == "topics" {
        let mut text = String::from("weft help TOPIC; topics:\n");
        for (name, line, _) in TOPICS {
            text.push_str(&format!("  {name:12} {line}\n"));
        }
        text.push_str("weft help COMMAND shows a command's flags.\n");
        print::print_text(&text);
        return Ok(());
    }
    if let Some((_, _, text)) = TOPICS.iter().find(|(n, ..)| *n == name) {
        print::print_text(text);
        return Ok(());
    }
    let mut command = Cli::command();
    command.build();
    let mut found = Some(&mut command);
    for word in &args.topic {
        found = found.and_then(|c| c.find_subcommand_mut(word));
    }
    match found {
        Some(command) => {
            print::print_text(&command.render_long_help().to_string());
            Ok(())
        }
        None => bail!(Usage(format!(
            "{name:?} is neither a topic nor a command; `weft help topics` lists the topics"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use weft_proxy::observe::flags::FLAGS;

    use super::*;

    #[test]
    fn every_topic_has_a_text_that_begins_with_its_title() {
        for (name, line, text) in TOPICS {
            assert!(text.starts_with("# "), "{name}");
            assert!(text.len() > 200 && !line.is_empty(), "{name}");
            assert!(text.lines().all(|l| l.chars().count() <= 100), "{name} has long lines");
        }
    }

    #[test]
    fn the_flags_topic_lists_the_proxys_flags_and_no_other() {
        let (_, _, text) = TOPICS.iter().find(|(name, ..)| *name == "flags").unwrap();
        let rows = text.lines().filter_map(|l| l.strip_prefix("    "));
        let mut listed: Vec<&str> = rows.filter_map(|l| l.split(' ').next()).collect();
        let mut flags: Vec<&str> = FLAGS.iter().map(|(_, name, _)| *name).collect();
        listed.sort_unstable();
        flags.sort_unstable();
        assert_eq!(listed, flags);
    }

    #[test]
    fn commands_are_explained_too() {
        run(&HelpArgs { topic: vec!["mtls".into(), "report".into()] }).unwrap();
        let error = run(&HelpArgs { topic: vec!["nonsense".into()] }).unwrap_err();
        assert!(error.is::<Usage>());
    }
}
