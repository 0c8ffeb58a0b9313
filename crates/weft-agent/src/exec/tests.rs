// SPDX-License-Identifier: Apache-2.0
//! Real processes, started as the agent starts them. (Through a running pod, kubectl is the
//! peer: `tests/test_kubectl_streams.py`.)

use std::process::Command;

use super::*;
use crate::child::ChildTable;
use crate::leftover::Ledger;
use crate::pod::PodKey;

struct Rig {
    spawner: Spawner,
    table: ChildTable,
    tasks: TaskGroup,
    _dir: tempfile::TempDir,
}

/// A client's ends of a program's streams.
struct Client {
    stdin: mpsc::Sender<Bytes>,
    stdout: mpsc::Receiver<Bytes>,
    stderr: mpsc::Receiver<Bytes>,
    resize: mpsc::Sender<(u16, u16)>,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let table = ChildTable::default();
    let ledger = Ledger::open(dir.path()).unwrap();
    let spawner = Spawner::new(table.clone(), ledger).unwrap();
    Rig { spawner, table, tasks: TaskGroup::new(), _dir: dir }
}

fn streams(tty: bool) -> (ExecStreams, Client) {
    let (stdin, input) = mpsc::channel(4);
    let (output, stdout) = mpsc::channel(4);
    let (errors, stderr) = mpsc::channel(4);
    let (resize, sizes) = mpsc::channel(4);
    let streams = ExecStreams {
        stdin: Some(input),
        stdout: Some(output),
        stderr: (!tty).then_some(errors),
        resize: tty.then_some(sizes),
    };
    (streams, Client { stdin, stdout, stderr, resize })
}

impl Rig {
    async fn run(&self, line: &[&str], tty: bool, streams: ExecStreams) -> Result<i32, ExecError> {
        let mut command = Command::new(line[0]);
        command.args(&line[1..]);
        let entry = Entry { command, own_session: false };
        let role = Role::Probe { pod: PodKey::new("a", "b") };
        let (child, ends) = start(&self.spawner, entry, role, tty, &streams).await?;
        let signaller = child.signaller();
        let running = Running { child: Some(child), signaller, tasks: self.tasks.clone() };
        attend(running, ends, streams).await
    }
}

async fn all(mut from: mpsc::Receiver<Bytes>) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(piece) = from.recv().await {
        out.extend_from_slice(&piece);
    }
    out
}

#[tokio::test]
async fn streams_and_exit_code() {
    let rig = rig();
    let (streams, client) = streams(false);
    let script = "tr a-z A-Z; echo wrong >&2; exit 7";
    let line = ["sh", "-c", script];
    let run = rig.run(&line, false, streams);
    let input = async {
        client.stdin.send(Bytes::from_static(b"hello ")).await.unwrap();
        client.stdin.send(Bytes::from_static(b"world")).await.unwrap();
        drop(client.stdin);
    };
    let (code, (), out, err) = tokio::join!(run, input, all(client.stdout), all(client.stderr));
    assert_eq!(code.unwrap(), 7);
    assert_eq!((out.as_slice(), err.as_slice()), (&b"HELLO WORLD"[..], &b"wrong\n"[..]));
    assert!(rig.table.pids().is_empty());
}

#[tokio::test]
async fn much_output_for_a_slow_reader_is_not_cut() {
    let rig = rig();
    let (streams, mut client) = streams(false);
    let run = rig.run(&["sh", "-c", "head -c 60000 /dev/zero"], false, streams);
    let reader = async {
        // The program has ended long before its output is read.
        while !rig.table.pids().is_empty() || client.stdout.is_empty() {
            tokio::task::yield_now().await;
        }
        // A reader slower than the grace is what is tested; there is no condition to wait for.
        tokio::time::sleep(OUTPUT_GRACE + Duration::from_millis(200)).await;
        let mut got = 0;
        while let Some(piece) = client.stdout.recv().await {
            got += piece.len();
        }
        got
    };
    let (code, got) = tokio::join!(run, reader);
    assert_eq!((code.unwrap(), got), (0, 60_000));
}

#[tokio::test]
async fn a_program_that_leaves_its_output_open_is_not_waited_for() {
    let rig = rig();
    let (streams, client) = streams(false);
    let script = "setsid sleep 120 & echo done";
    let line = ["sh", "-c", script];
    let run = rig.run(&line, false, streams);
    let both = async { tokio::join!(run, all(client.stdout)) };
    let (code, out) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!((code.unwrap(), out.as_slice()), (0, &b"done\n"[..]));
}

#[tokio::test]
async fn dropping_it_hangs_up_then_kills() {
    let rig = rig();
    // One says goodbye, the other does not hear.
    for script in [
        "trap 'exit 3' HUP; echo up; while :; do sleep 0.05; done",
        "trap '' HUP; echo up; while :; do sleep 0.05; done",
    ] {
        let (streams, mut client) = streams(false);
        {
            let line = ["sh", "-c", script];
            let run = rig.run(&line, false, streams);
            let first = async { client.stdout.recv().await.unwrap() };
            tokio::select! {
                ended = run => panic!("{ended:?}"),
                said = first => assert_eq!(said, "up\n"),
            }
        }
        let gone = async {
            while !rig.table.pids().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
    }
}

#[tokio::test]
async fn a_terminal_controls_its_session_and_has_a_size() {
    let rig = rig();
    let (streams, mut client) = streams(true);
    // The name of the terminal, the leader of its session, its size after a change.
    let script = "test -t 0 -a -t 1 -a -t 2 && ps -o sid= -p $$ | tr -d ' ' && echo $$; \
                  read line; stty size; exit 5";
    let line = ["sh", "-c", script];
    let run = rig.run(&line, true, streams);
    let talk = async {
        let mut said = Vec::new();
        while said.iter().filter(|b| **b == b'\n').count() < 2 {
            said.extend_from_slice(&client.stdout.recv().await.unwrap());
        }
        let text = String::from_utf8(said).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), lines.next(), "the program leads its session: {text}");
        client.resize.send((132, 43)).await.unwrap();
        while client.resize.capacity() < client.resize.max_capacity() {
            tokio::task::yield_now().await;
        }
        client.stdin.send(Bytes::from_static(b"go\n")).await.unwrap();
        all(client.stdout).await
    };
    let (code, rest) = tokio::join!(run, talk);
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains("43 132"), "{rest}");
    assert_eq!(code.unwrap(), 5);
}

#[tokio::test]
async fn the_end_of_input_reaches_a_terminal_too() {
    let rig = rig();
    let (streams, client) = streams(true);
    let run = rig.run(&["cat"], true, streams);
    let input = async {
        client.stdin.send(Bytes::from_static(b"line\n")).await.unwrap();
        drop(client.stdin);
    };
    let (code, (), out) = tokio::join!(run, input, all(client.stdout));
    assert_eq!(code.unwrap(), 0);
    assert!(String::from_utf8_lossy(&out).contains("line"));
}

#[tokio::test]
async fn what_cannot_be_started_says_so() {
    let rig = rig();
    let (streams, _client) = streams(false);
    let error = rig.run(&["/nowhere/at/all"], false, streams).await.unwrap_err();
    assert!(
        matches!(&error, ExecError::Start { source, .. }
        if source.kind() == io::ErrorKind::NotFound),
        "{error}"
    );
}
