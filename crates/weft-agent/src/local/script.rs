// SPDX-License-Identifier: Apache-2.0
//! A check that runs a program of this machine. Only files of the machine's operator define one
//! ([`super::files`]): nothing that comes through a door ever does.
//!
//! The program gets nothing of the agent's environment but where programs and the user are, leads
//! its own group, and is ended with all of it when its time is over.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use weft_base::limits::CHECK_OUTPUT_BYTES_MAX;
use weft_kinds::views::catalog::Status;

use crate::sys;

/// What it inherits.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ"];
const PIECE: usize = 4096;

/// What to run, and for how long at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub args: Vec<String>,
    pub timeout: Duration,
}

/// Ends the group when the program is let go of before its end.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // What is left of it may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Script {
    /// Runs it once: 0 is passing, 1 a warning, anything else critical, as for Consul and Nagios.
    /// `env` is the agent's own. Dropping the future ends the program.
    pub async fn run(&self, env: &[(String, String)]) -> (Status, String) {
        let Some((program, args)) = self.args.split_first() else {
            return (Status::Critical, "the check names no program".to_owned());
        };
        let inherited = env.iter().filter(|(name, _)| INHERITED.contains(&name.as_str()));
        let mut command = Command::new(program);
        command.args(args).env_clear();
        for (name, value) in inherited {
            command.env(name, value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::prepare(&mut command);
        let mut child = match tokio::process::Command::from(command).spawn() {
            Ok(child) => child,
            Err(why) => return (Status::Critical, format!("{program} cannot be started: {why}")),
        };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let mut group = Group(pid);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let mut output = Vec::new();
        let ended = tokio::time::timeout(self.timeout, async {
            // Read to its end, or the program would wait for a reader.
            let mut errors = Vec::new();
            tokio::join!(drain(out, &mut output), drain(err, &mut errors));
            output.extend_from_slice(&errors);
            child.wait().await
        })
        .await;
        if let Ok(Ok(_)) = &ended {
            // Its number may be another's soon. What it left behind held no pipe open.
            group.0 = None;
        }
        let text = |output: &[u8]| {
            let end = output.len().min(CHECK_OUTPUT_BYTES_MAX);
            String::from_utf8_lossy(output.get(..end).unwrap_or_default()).into_owned()
        };
        match ended {
            Ok(Ok(code)) => match code.code() {
                Some(0) => (Status::Passing, text(&output)),
                Some(1) => (Status::Warning, text(&output)),
                _ => (Status::Critical, text(&output)),
            },
            Ok(Err(why)) => (Status::Critical, format!("{program} was lost: {why}")),
            Err(_) => {
                let ms = self.timeout.as_millis();
                (Status::Critical, format!("{program} was ended: it took longer than {ms} ms"))
            }
        }
    }
}

/// Reads to the end and keeps the beginning.
async fn drain(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut piece = vec![0; PIECE];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        let room = CHECK_OUTPUT_BYTES_MAX.saturating_sub(into.len()).min(n);
        into.extend_from_slice(piece.get(..room).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(text: &str, timeout: Duration) -> Script {
        Script { args: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(), timeout }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn its_code_is_the_status_and_its_output_is_bounded() {
        for (text, status) in
            [("echo a", Status::Passing), ("exit 1", Status::Warning), ("exit 2", Status::Critical)]
        {
            assert_eq!(sh(text, LONG).run(&[]).await.0, status, "{text}");
        }
        let (_, output) = sh("echo to; echo well >&2", LONG).run(&[]).await;
        assert_eq!(output, "to\nwell\n");
        let much = "i=0; while [ $i -lt 3000 ]; do echo 0123456789abcdef; i=$((i+1)); done";
        let (status, output) = sh(much, LONG).run(&[]).await;
        assert_eq!((status, output.len()), (Status::Passing, CHECK_OUTPUT_BYTES_MAX));
        let none = Script { args: vec!["/nowhere/none".into()], timeout: LONG };
        assert!(none.run(&[]).await.1.contains("cannot be started"));
    }

    #[tokio::test]
    async fn it_inherits_no_secrets() {
        let env = [("PATH", "/bin:/usr/bin"), ("WEFT_JOIN_TOKEN", "s3cret")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (_, output) = sh("env; echo $PATH", LONG).run(&env).await;
        assert!(output.contains("/bin:/usr/bin") && !output.contains("s3cret"), "{output}");
    }

    #[tokio::test]
    async fn all_of_it_ends_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let text = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let mut child = String::new();
        // Time enough to start, on a machine that is busy the last of them.
        for seconds in [1, 5, 30, 60] {
            let (status, output) = sh(&text, Duration::from_secs(seconds)).run(&[]).await;
            assert_eq!(status, Status::Critical);
            assert!(output.contains(&format!("longer than {seconds}000 ms")), "{output}");
            child = std::fs::read_to_string(&file).unwrap_or_default();
            if child.ends_with('\n') {
                break;
            }
        }
        assert!(child.ends_with('\n'), "it did not start");
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        for _ in 0..6_000 {
            if is_gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("what the script started lives on");
    }
}
