// SPDX-License-Identifier: Apache-2.0
//! `weft run -- CMD`: one program as an instance of a service, for as long as it lives. It is
//! registered at a server's Consul door with checks, held up by heartbeats, and taken out before
//! it is asked to end. Killed, `weft run` takes the program with it, and the server removes the
//! instance when it hears nothing more.

use std::io::IsTerminal as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http::Method;
use serde_json::{Value, json};
use weft_agent::held::Held;

use crate::asked::Asked;
use crate::client::Api;
use crate::client::objects::encoded;
use crate::exit::{self, Unreachable, Usage};

/// The server removes an instance that it has not heard of for this long.
const SILENCE_MAX: Duration = Duration::from_secs(3);
const BEAT_EVERY: Duration = Duration::from_millis(750);
/// How long one call may take: what is late is sent again.
const CALL_MAX: Duration = Duration::from_secs(2);
/// What the program gets when it is asked to end.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The service that it is an instance of.
    #[arg(long, visible_alias = "service", value_name = "NAME")]
    pub name: String,
    /// Where it listens; it is told by `PORT`. Without one it is listed but not reached.
    #[arg(long, short, default_value_t = 0, hide_default_value = true)]
    pub port: u16,
    /// The address that others reach it at.
    #[arg(long, default_value = "127.0.0.1")]
    pub address: IpAddr,
    /// Its id; default NAME-PORT.
    #[arg(long)]
    pub id: Option<String>,
    /// Namespace; default `default`.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// A tag; may be repeated.
    #[arg(long = "tag")]
    pub tags: Vec<String>,
    /// What it says of itself: `--meta version=2`; may be repeated.
    #[arg(long = "meta", value_name = "KEY=VALUE")]
    pub meta: Vec<String>,
    /// When it is ready: `tcp` when its port takes connections (the default), a path that answers
    /// 2xx over HTTP, or `none`.
    #[arg(long, default_value = "tcp", value_name = "tcp|/PATH|none")]
    pub check: String,
    /// How often that is asked.
    #[arg(long, default_value = "1s", value_name = "TIME")]
    pub interval: String,
    /// How long it goes on after others were told that it goes.
    #[arg(long, default_value_t = 1_000, value_name = "MILLISECONDS")]
    pub drain_ms: u64,
    /// The server's Consul door: http://HOST:PORT, or unix:///PATH where it has a socket.
    #[arg(
        long,
        visible_alias = "server",
        env = "CONSUL_HTTP_ADDR",
        default_value = "http://127.0.0.1:8500",
        value_name = "URL"
    )]
    pub consul: String,
    /// What Consul's clients take for an address without a scheme to be one of HTTPS.
    #[arg(long, env = "CONSUL_HTTP_SSL", hide = true)]
    pub consul_ssl: Option<String>,
    /// Token of Consul's access lists, where they are on.
    #[arg(long, env = "CONSUL_HTTP_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// The door as this instance uses it.
struct Registrar<'a> {
    api: Api,
    args: &'a RunArgs,
    id: String,
}

/// Why a call did not do what it should.
enum Failed {
    /// The server is away, or slow.
    Away(String),
    Refused(String),
}

/// Runs the program; its exit code is ours.
pub fn run(args: &RunArgs) -> ExitCode {
    // One thread, which is also the one that starts the program: it goes when that thread goes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(hold(args)));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("weft: {}", exit::sentence(&error));
            exit::code(&error)
        }
    }
}

async fn hold(args: &RunArgs) -> Result<u8> {
    let registrar = Registrar::new(args)?;
    let mut asked = Asked::listen()?;
    // A server that is not there is said before anything is started.
    match registrar.call(Method::GET, "/v1/status/leader", None).await {
        Err(Failed::Away(why)) => bail!(Unreachable(args.consul.clone(), why)),
        Err(Failed::Refused(why)) => bail!("{} is no Consul door of weft: {why}", args.consul),
        Ok(_) => {}
    }
    let mut program = start(args)?;
    let pid = program.pid();
    if let Err(Failed::Away(why) | Failed::Refused(why)) = registrar.register(pid).await {
        bail!("{} could not be registered, so it is not run: {why}", registrar.id);
    }
    eprintln!("weft: {} is {}, process {}", registrar.id, registrar.place(), pid);
    let ended = tokio::select! {
        ended = program.wait() => Some(ended?),
        () = asked.end_wanted() => None,
        () = registrar.hold_up(pid) => None,
    };
    registrar.deregister().await;
    let ended = match ended {
        Some(ended) => ended,
        None => end(args, &mut program, &mut asked).await?,
    };
    Ok(u8::try_from(ended.code).unwrap_or(1))
}

/// Others have been told: lets it finish, asks it to end, and ends it. Asked twice, ends at once.
async fn end(
    args: &RunArgs,
    program: &mut Held,
    asked: &mut Asked,
) -> Result<weft_agent::machine::Exit> {
    let politely = async {
        let rest = Duration::from_millis(args.drain_ms);
        if let Ok(ended) = tokio::time::timeout(rest, program.wait()).await {
            return ended;
        }
        program.ask_to_end();
        match tokio::time::timeout(GRACE, program.wait()).await {
            Ok(ended) => ended,
            Err(_) => Err(std::io::Error::other("it does not end")),
        }
    };
    let ended = tokio::select! {
        ended = politely => ended.ok(),
        () = asked.end_wanted() => None,
    };
    match ended {
        Some(ended) => Ok(ended),
        None => {
            program.kill();
            Ok(program.wait().await?)
        }
    }
}

fn start(args: &RunArgs) -> Result<Held> {
    let Some((program, rest)) = args.command.split_first() else {
        bail!(Usage("name the program: weft run --name NAME -- COMMAND".into()));
    };
    let mut command = std::process::Command::new(program);
    command.args(rest);
    if args.port != 0 {
        command.env("PORT", args.port.to_string());
    }
    command.env("WEFT_SERVICE", &args.name);
    if std::io::stdin().is_terminal() {
        // It is in the background of this terminal, where reading would stop it.
        command.stdin(Stdio::null());
    }
    Held::start(command).with_context(|| format!("{program:?} cannot be started"))
}

// === impl Registrar ===

impl<'a> Registrar<'a> {
    fn new(args: &'a RunArgs) -> Result<Self> {
        let usage = |text: String| anyhow!(Usage(text));
        if args.check.starts_with('/') && args.port == 0 {
            return Err(usage("--check PATH needs a --port to ask".into()));
        }
        if !args.check.starts_with('/') && !["tcp", "none"].contains(&args.check.as_str()) {
            return Err(usage(format!("--check {:?}: tcp, none or a /PATH", args.check)));
        }
        if let Some(wrong) = args.meta.iter().find(|pair| !pair.contains('=')) {
            return Err(usage(format!("--meta {wrong:?} is not KEY=VALUE")));
        }
        let bare = !args.consul.contains("://");
        let ssl = args.consul_ssl.as_deref().is_some_and(|ssl| ["1", "true"].contains(&ssl));
        if args.consul.starts_with("https://") || (bare && ssl) {
            return Err(usage(format!(
                "--consul {}: weft run speaks no TLS; name the server's http:// address on this \
                 machine, or its socket as unix:///PATH",
                args.consul
            )));
        }
        let id = match (&args.id, args.port) {
            (Some(id), _) => id.clone(),
            (None, 0) => format!("{}-{}", args.name, std::process::id()),
            (None, port) => format!("{}-{port}", args.name),
        };
        Ok(Self { api: Api::new(&args.consul), args, id })
    }

    fn place(&self) -> String {
        match self.args.port {
            0 => format!("of {}", self.args.name),
            port => {
                format!("of {} at {}", self.args.name, SocketAddr::new(self.args.address, port))
            }
        }
    }

    /// Says again and again that the program lives, and once when it is ready.
    async fn hold_up(&self, pid: u32) {
        let beat = json!({ "Status": "passing", "Output": format!("process {pid} runs") });
        let path = format!("/v1/agent/check/update/{}", encoded(&self.process_check()));
        let (mut lost, mut ready) = (false, false);
        loop {
            match self.call(Method::PUT, &path, Some(&beat)).await {
                Ok(_) if std::mem::take(&mut lost) => eprintln!("weft: the server is there again"),
                Ok(_) => {}
                Err(Failed::Away(why)) if !std::mem::replace(&mut lost, true) => {
                    eprintln!("weft: the server is lost ({why}); {} runs on", self.id);
                }
                Err(Failed::Away(_)) => {}
                // It was silent for too long, or the server has forgotten everything.
                Err(Failed::Refused(_)) => match self.register(pid).await {
                    Ok(()) => eprintln!("weft: {} was registered again", self.id),
                    Err(Failed::Away(why) | Failed::Refused(why)) => {
                        tracing::warn!(why, "the instance could not be registered again");
                    }
                },
            }
            if !ready && !lost {
                let path = format!("/v1/agent/health/service/id/{}", encoded(&self.id));
                ready = self.call(Method::GET, &path, None).await.is_ok();
                if ready {
                    eprintln!("weft: {} is ready", self.id);
                }
            }
            tokio::time::sleep(BEAT_EVERY).await;
        }
    }

    async fn register(&self, pid: u32) -> Result<(), Failed> {
        let args = self.args;
        let meta = args.meta.iter().filter_map(|pair| pair.split_once('='));
        let meta: serde_json::Map<String, Value> =
            meta.map(|(k, v)| (k.to_owned(), json!(v))).collect();
        let mut checks = vec![json!({
            "CheckID": self.process_check(),
            "Name": "Process",
            "WeftProcess": format!("{}ms", SILENCE_MAX.as_millis()),
            "Status": "passing",
            "Output": format!("process {pid} runs"),
        })];
        let at = SocketAddr::new(args.address, args.port);
        let (interval, timeout) = (&args.interval, "5s");
        let id = format!("service:{}", self.id);
        match args.check.as_str() {
            _ if args.port == 0 => {}
            "none" => {}
            "tcp" => checks.push(json!({
                "CheckID": id, "TCP": at.to_string(), "Interval": interval, "Timeout": timeout,
            })),
            path => checks.push(json!({
                "CheckID": id, "HTTP": format!("http://{at}{path}"), "Interval": interval,
                "Timeout": timeout,
            })),
        }
        let body = json!({
            "Name": args.name, "ID": self.id, "Port": args.port, "Address": args.address,
            "Tags": args.tags, "Meta": meta, "Checks": checks,
        });
        let path = "/v1/agent/service/register?replace-existing-checks=1";
        self.call(Method::PUT, path, Some(&body)).await.map(drop)
    }

    /// Best effort: what is not heard the server finds out by itself.
    async fn deregister(&self) {
        let path = format!("/v1/agent/service/deregister/{}", encoded(&self.id));
        if let Err(Failed::Away(why) | Failed::Refused(why)) =
            self.call(Method::PUT, &path, None).await
        {
            tracing::debug!(why, "the server was not told that the instance goes");
        }
    }

    fn process_check(&self) -> String {
        format!("process:{}", self.id)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failed> {
        let mut path = path.to_owned();
        let more = [("ns", &self.args.namespace), ("token", &self.args.token)];
        for (name, value) in more.into_iter().filter_map(|(n, v)| Some((n, v.as_ref()?))) {
            let mark = if path.contains('?') { '&' } else { '?' };
            path = format!("{path}{mark}{name}={}", encoded(value));
        }
        let body = body.map(|body| body.to_string().into_bytes());
        let call = self.api.call(method, &path, "application/json", body);
        let answer = match tokio::time::timeout(CALL_MAX, call).await {
            Err(_) => return Err(Failed::Away("it does not answer".into())),
            Ok(Err(error)) => {
                let why = match error.downcast_ref::<Unreachable>() {
                    Some(Unreachable(_, why)) => why.clone(),
                    None => error.to_string(),
                };
                return Err(Failed::Away(why));
            }
            Ok(Ok(answer)) => answer,
        };
        let text = answer.body.as_str().unwrap_or_default().to_owned();
        match answer.status {
            200..300 => Ok(answer.body),
            // The store is away: the same will do in a moment.
            500 if !text.contains("Unknown check") => Err(Failed::Away(text)),
            502..505 => Err(Failed::Away(text)),
            _ => Err(Failed::Refused(text)),
        }
    }
}
