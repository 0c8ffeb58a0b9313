// SPDX-License-Identifier: Apache-2.0
//! Real child processes: how they begin, and that none stays behind.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use super::*;

fn spawner() -> (tempfile::TempDir, Spawner, ChildTable) {
    let dir = tempfile::tempdir().unwrap();
    let table = ChildTable::default();
    let ledger = Ledger::open(dir.path()).unwrap();
    let spawner = Spawner::new(table.clone(), ledger).unwrap();
    (dir, spawner, table)
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn app() -> Role {
    Role::App { pod: PodKey::new("a", "b") }
}

/// The first line of output: the test's way to know that the process has come so far.
fn line(child: &mut Child) -> String {
    let out = std::fs::File::from(child.take_stdout().unwrap());
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

async fn gone(pid: u32) {
    for _ in 0..12_000 {
        match procfs::stat(pid) {
            Some(s) if s.state != 'Z' => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => return,
        }
    }
    panic!("process {pid} is still there");
}

#[tokio::test]
async fn exits_and_signals_are_told_apart() {
    let (_dir, spawner, table) = spawner();
    let mut child = spawner.spawn(sh("exit 7"), app()).await.unwrap();
    assert_eq!(child.wait().await.unwrap(), Exit::code(7));
    let mut child = spawner.spawn(sh("kill -9 $$"), app()).await.unwrap();
    assert_eq!(child.wait().await.unwrap(), Exit::signal(9));
    assert_eq!(Exit::signal(9).code, 137);
    assert!(table.pids().is_empty());
    let missing = spawner.spawn(Command::new("/no/such"), app()).await.unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn the_whole_group_ends_with_its_leader() {
    let (_dir, spawner, _) = spawner();
    let mut child = spawner.spawn(sh("sleep 1000 & echo $!; wait"), app()).await.unwrap();
    let grandchild: u32 = line(&mut child).parse().unwrap();
    assert!(procfs::stat(grandchild).is_some());
    child.signaller().send(true);
    assert_eq!(child.wait().await.unwrap(), Exit::signal(9));
    gone(grandchild).await;

    // A leader that leaves by itself leaves nobody behind either.
    let script = "sh -c 'trap \"\" TERM; sleep 1000' & echo $!; exit 0";
    let mut child = spawner.spawn(sh(script), app()).await.unwrap();
    let grandchild: u32 = line(&mut child).parse().unwrap();
    assert_eq!(child.wait().await.unwrap(), Exit::code(0));
    gone(grandchild).await;
}

#[tokio::test]
async fn a_stopped_process_can_end_politely() {
    let (_dir, spawner, _) = spawner();
    let script = "trap 'exit 5' TERM; kill -STOP $$; while :; do sleep 0.01; done";
    let mut child = spawner.spawn(sh(script), app()).await.unwrap();
    while procfs::stat(child.pid()).is_some_and(|s| s.state != 'T') {
        tokio::task::yield_now().await;
    }
    child.signaller().send(false);
    assert_eq!(child.wait().await.unwrap(), Exit::code(5));
}

#[tokio::test]
async fn children_end_with_the_agent() {
    let (_dir, spawner, _) = spawner();
    let mut child = spawner.spawn(sh("echo x; exec sleep 1000"), app()).await.unwrap();
    line(&mut child);
    let pid = child.pid();
    // The handle is forgotten, as when the agent is killed: the kernel ends the child with the
    // thread that started it.
    let child = std::mem::ManuallyDrop::new(child);
    drop(spawner);
    gone(pid).await;
    drop(std::mem::ManuallyDrop::into_inner(child));
}

#[tokio::test]
async fn the_table_knows_only_living_children() {
    let (_dir, spawner, table) = spawner();
    assert_eq!(table.role(std::process::id()), None);
    assert_eq!(table.role(1), None);
    let role = Role::Proxy { pod: PodKey::new("a", "b"), service_account: "sa".into() };
    let mut child = spawner.spawn(sh("echo x; exec sleep 1000"), role.clone()).await.unwrap();
    line(&mut child);
    let pid = child.pid();
    assert_eq!(table.role(pid), Some(role));
    // Same pid, other start time: somebody else.
    table.lock().get_mut(&pid).unwrap().start_time += 1;
    assert_eq!(table.role(pid), None);
    let signaller = child.signaller();
    drop(child);
    assert_eq!(table.role(pid), None);
    signaller.send(true);
}

#[tokio::test]
async fn a_process_gets_ordinary_limits_and_no_input() {
    let (_dir, spawner, _) = spawner();
    let mut child =
        spawner.spawn(sh("echo $(ulimit -c) $(ulimit -n) $(cat | wc -c)"), app()).await.unwrap();
    let text = line(&mut child);
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = hard.map_or(65_536, |m| m.min(65_536));
    assert_eq!(text, format!("0 {files} 0"));
    child.wait().await.unwrap();
}

#[tokio::test]
async fn who_calls_before_its_start_is_over_is_waited_for() {
    let table = ChildTable::default();
    let pid = std::process::id();
    assert_eq!(table.role_of_caller(pid).await, Ok(None), "nothing is under way");

    let (one, other) = (table.starting(), table.starting());
    let start = async {
        tokio::task::yield_now().await;
        drop(other);
        tokio::task::yield_now().await;
        let start_time = procfs::stat(pid).unwrap().start_time;
        table.insert(pid, Entry { start_time, role: Role::Network });
        drop(one);
    };
    assert_eq!(tokio::join!(table.role_of_caller(pid), start).0, Ok(Some(Role::Network)));

    let failed = table.starting();
    let start = async { drop(failed) };
    let stranger = u32::MAX;
    assert_eq!(tokio::join!(table.role_of_caller(stranger), start).0, Ok(None));
    // A start that is late may be this one's.
    let _late = table.starting();
    assert_eq!(table.role_of_caller(stranger).await, Err(StillStarting));
}
