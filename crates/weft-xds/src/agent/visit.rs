// SPDX-License-Identifier: Apache-2.0
//! A client's visit to a pod as it travels between server and agent: the question, then what
//! either side says. Plain data; the binary carries it at both ends (`weft`'s `visit`).

use bytes::Bytes;
use weft_proto::weft::agent::v1 as wire;

use super::{PodRef, Refusal};

/// A client wants something of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisitAsk {
    pub id: u64,
    pub pod: PodRef,
    pub what: VisitWhat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VisitWhat {
    Exec { container: String, command: Vec<String>, tty: bool },
    Attach { container: String },
    Connect { port: u16 },
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VisitUp {
    /// The first word: the question's number.
    Ready(u64),
    /// The first word instead, or the last.
    Failed(VisitFailure),
    Stdout(Bytes),
    Stderr(Bytes),
    /// No more of one; the rest goes on.
    Ended(Output),
    /// The last word.
    Exit(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisitFailure {
    /// The question's number.
    pub id: u64,
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    NotRunning,
    Refused,
    NotStarted,
    Lost,
    Unavailable,
}

/// What the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VisitDown {
    /// The first word: it begins with these streams.
    Begin(VisitStreams),
    Stdin(Bytes),
    StdinEnded,
    /// Of the terminal.
    Size {
        columns: u16,
        rows: u16,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VisitStreams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub resize: bool,
}

/// What a host's containers and the host itself use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageReport {
    pub containers: Vec<ContainerUsage>,
    pub machine: Option<MachineUsage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    pub namespace: String,
    pub pod: String,
    pub container: String,
    /// Thousandths of a processor.
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineUsage {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

// === to and from the wire ===

impl From<VisitAsk> for wire::VisitAsk {
    fn from(a: VisitAsk) -> Self {
        use wire::visit_ask::What;
        let what = match a.what {
            VisitWhat::Exec { container, command, tty } => {
                What::Exec(wire::ExecAsk { container, command, tty })
            }
            VisitWhat::Attach { container } => What::Attach(wire::AttachAsk { container }),
            VisitWhat::Connect { port } => What::Connect(wire::ConnectAsk { port: port.into() }),
        };
        Self { id: a.id, pod: Some(a.pod.into()), what: Some(what) }
    }
}

impl TryFrom<wire::VisitAsk> for VisitAsk {
    type Error = Refusal;

    fn try_from(a: wire::VisitAsk) -> Result<Self, Refusal> {
        use wire::visit_ask::What;
        let what = match a.what {
            Some(What::Exec(wire::ExecAsk { container, command, tty })) => {
                VisitWhat::Exec { container, command, tty }
            }
            Some(What::Attach(wire::AttachAsk { container })) => VisitWhat::Attach { container },
            Some(What::Connect(wire::ConnectAsk { port })) => {
                VisitWhat::Connect { port: number(port, "port")? }
            }
            None => return Err(Refusal::Invalid("the visit does not say what it is for".into())),
        };
        Ok(Self { id: a.id, pod: a.pod.unwrap_or_default().into(), what })
    }
}

impl From<VisitUp> for wire::VisitUp {
    fn from(up: VisitUp) -> Self {
        use wire::visit_up::{Stream, What};
        let what = match up {
            VisitUp::Ready(id) => What::Ready(id),
            VisitUp::Failed(failure) => What::Failed(failure.into()),
            VisitUp::Stdout(piece) => What::Stdout(piece),
            VisitUp::Stderr(piece) => What::Stderr(piece),
            VisitUp::Ended(Output::Stdout) => What::Ended(Stream::Stdout.into()),
            VisitUp::Ended(Output::Stderr) => What::Ended(Stream::Stderr.into()),
            VisitUp::Exit(code) => What::Exit(code),
        };
        Self { what: Some(what) }
    }
}

impl TryFrom<wire::VisitUp> for VisitUp {
    type Error = Refusal;

    fn try_from(up: wire::VisitUp) -> Result<Self, Refusal> {
        use wire::visit_up::{Stream, What};
        let what = up.what.ok_or_else(unknown)?;
        Ok(match what {
            What::Ready(id) => Self::Ready(id),
            What::Failed(failure) => Self::Failed(failure.into()),
            What::Stdout(piece) => Self::Stdout(piece),
            What::Stderr(piece) => Self::Stderr(piece),
            What::Ended(stream) => Self::Ended(match Stream::try_from(stream) {
                Ok(Stream::Stdout) => Output::Stdout,
                Ok(Stream::Stderr) => Output::Stderr,
                Ok(Stream::Unspecified) | Err(_) => return Err(unknown()),
            }),
            What::Exit(code) => Self::Exit(code),
        })
    }
}

impl From<VisitFailure> for wire::VisitFailure {
    fn from(f: VisitFailure) -> Self {
        use wire::visit_failure::Kind;
        let kind = match f.kind {
            FailureKind::NotRunning => Kind::NotRunning,
            FailureKind::Refused => Kind::Refused,
            FailureKind::NotStarted => Kind::NotStarted,
            FailureKind::Lost => Kind::Lost,
            FailureKind::Unavailable => Kind::Unavailable,
        };
        Self { id: f.id, kind: kind.into(), message: f.message }
    }
}

impl From<wire::VisitFailure> for VisitFailure {
    fn from(f: wire::VisitFailure) -> Self {
        use wire::visit_failure::Kind;
        let kind = match f.kind() {
            Kind::NotRunning => FailureKind::NotRunning,
            Kind::Refused => FailureKind::Refused,
            Kind::NotStarted => FailureKind::NotStarted,
            Kind::Unavailable => FailureKind::Unavailable,
            // What a newer agent says otherwise has failed all the same.
            Kind::Lost | Kind::Unspecified => FailureKind::Lost,
        };
        Self { id: f.id, kind, message: f.message }
    }
}

impl From<VisitDown> for wire::VisitDown {
    fn from(down: VisitDown) -> Self {
        use wire::visit_down::What;
        let what = match down {
            VisitDown::Begin(VisitStreams { stdin, stdout, stderr, resize }) => {
                What::Begin(wire::VisitStreams { stdin, stdout, stderr, resize })
            }
            VisitDown::Stdin(piece) => What::Stdin(piece),
            VisitDown::StdinEnded => What::StdinEnded(true),
            VisitDown::Size { columns, rows } => {
                What::Size(wire::TerminalSize { columns: columns.into(), rows: rows.into() })
            }
        };
        Self { what: Some(what) }
    }
}

impl TryFrom<wire::VisitDown> for VisitDown {
    type Error = Refusal;

    fn try_from(down: wire::VisitDown) -> Result<Self, Refusal> {
        use wire::visit_down::What;
        Ok(match down.what.ok_or_else(unknown)? {
            What::Begin(wire::VisitStreams { stdin, stdout, stderr, resize }) => {
                Self::Begin(VisitStreams { stdin, stdout, stderr, resize })
            }
            What::Stdin(piece) => Self::Stdin(piece),
            What::StdinEnded(_) => Self::StdinEnded,
            What::Size(wire::TerminalSize { columns, rows }) => {
                Self::Size { columns: number(columns, "columns")?, rows: number(rows, "rows")? }
            }
        })
    }
}

impl From<UsageReport> for wire::ReportUsageRequest {
    fn from(r: UsageReport) -> Self {
        let container = |c: ContainerUsage| wire::ContainerUsage {
            pod: Some(wire::ObjectKey { namespace: c.namespace, name: c.pod, uid: String::new() }),
            container: c.container,
            cpu_milli: c.cpu_milli,
            memory_bytes: c.memory_bytes,
        };
        let machine = |m: MachineUsage| wire::MachineUsage {
            cpu_milli: m.cpu_milli,
            memory_bytes: m.memory_bytes,
        };
        Self {
            containers: r.containers.into_iter().map(container).collect(),
            machine: r.machine.map(machine),
        }
    }
}

impl From<wire::ReportUsageRequest> for UsageReport {
    fn from(r: wire::ReportUsageRequest) -> Self {
        let container = |c: wire::ContainerUsage| {
            let pod = c.pod.unwrap_or_default();
            ContainerUsage {
                namespace: pod.namespace,
                pod: pod.name,
                container: c.container,
                cpu_milli: c.cpu_milli,
                memory_bytes: c.memory_bytes,
            }
        };
        let machine = |m: wire::MachineUsage| MachineUsage {
            cpu_milli: m.cpu_milli,
            memory_bytes: m.memory_bytes,
        };
        Self {
            containers: r.containers.into_iter().map(container).collect(),
            machine: r.machine.map(machine),
        }
    }
}

fn number(n: u32, what: &str) -> Result<u16, Refusal> {
    u16::try_from(n).map_err(|_| Refusal::Invalid(format!("{what}: {n} is more than 65535")))
}

fn unknown() -> Refusal {
    Refusal::Invalid(
        "the other side says what is not understood here; are the versions equal?".into(),
    )
}
