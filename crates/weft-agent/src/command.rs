// SPDX-License-Identifier: Apache-2.0
//! Which program a container is here: an image stands for a local command.
//!
//! Pure except for looking whether a file exists; called before each start by `worker`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::env::Env;
use crate::pod::{ANNOTATION_COMMAND, ANNOTATION_WORKDIR, Container, Pod};

/// Image name to local command line, as `--image user-service:1.0=./user.py` gives it.
pub type Images = BTreeMap<String, String>;

/// A program to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub workdir: PathBuf,
}

/// Why there is no program for a container.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    #[error(
        "no local command stands for image {image:?}: map it with --image {image}=COMMAND, or set \
         the annotation {ANNOTATION_COMMAND} on the pod"
    )]
    NoCommand { image: String },
    #[error("the command {line:?} cannot be split into words: a quote is not closed")]
    Quote { line: String },
    #[error(
        "the program {program:?} of container {container:?} is not there or not executable{hint}; \
         build it, or correct its command"
    )]
    NoProgram { program: String, container: String, hint: &'static str },
    #[error("the working directory {0} does not exist")]
    NoWorkdir(PathBuf),
}

impl CommandError {
    /// Kubernetes' word for it, as the container's waiting reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCommand { .. } => "ErrImageNeverPull",
            Self::Quote { .. } => "InvalidImageName",
            Self::NoProgram { .. } | Self::NoWorkdir(_) => "CreateContainerError",
        }
    }
}

/// Resolves a container: the annotation, then the image map, then the container's own command.
/// A mapped image replaces `command`, which names a path inside the image; `args` stay.
///
/// # Errors
/// When there is no command for the image or its program is missing.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    env: &Env,
    images: &Images,
    default_dir: &Path,
) -> Result<Command, CommandError> {
    let base = pod
        .annotation(ANNOTATION_WORKDIR)
        .map_or(default_dir.to_owned(), |dir| default_dir.join(env.expand(dir)));
    let own = Path::new(&*container.working_dir);
    let workdir = if container.working_dir.is_empty() { base.clone() } else { base.join(own) };
    if !workdir.is_dir() {
        return Err(CommandError::NoWorkdir(workdir));
    }
    let mut words = match mapped(pod, container, images) {
        Some(line) => split(line).ok_or_else(|| CommandError::Quote { line: line.to_owned() })?,
        None => container.command.clone(),
    };
    words.extend(container.args.iter().cloned());
    let mut words = words.into_iter().map(|word| env.expand(&word));
    let program = words.next().filter(|_| has_command(pod, container, images));
    let program =
        program.ok_or_else(|| CommandError::NoCommand { image: container.image.to_string() })?;
    let found = find(&program, &base, env).ok_or_else(|| CommandError::NoProgram {
        hint: if program.contains('/') { "" } else { " on PATH" },
        container: container.name.to_string(),
        program,
    })?;
    Ok(Command { program: found, args: words.collect(), workdir })
}

fn has_command(pod: &Pod, container: &Container, images: &Images) -> bool {
    mapped(pod, container, images).is_some() || !container.command.is_empty()
}

fn mapped<'a>(pod: &'a Pod, container: &Container, images: &'a Images) -> Option<&'a str> {
    let named = format!("{ANNOTATION_COMMAND}.{}", container.name);
    let only = match pod.spec.containers.as_slice() {
        [one] => one.name == container.name,
        _ => false,
    };
    let annotated =
        pod.annotation(&named).or_else(|| pod.annotation(ANNOTATION_COMMAND).filter(|_| only));
    annotated.or_else(|| image(&container.image, images)).filter(|line| !line.trim().is_empty())
}

/// The map's entry for an image: as written, without its tag, without its registry, without both.
fn image<'a>(name: &str, images: &'a Images) -> Option<&'a str> {
    // A colon before the last slash belongs to the registry's port.
    let short = name.rsplit('/').next().unwrap_or(name);
    let tag = short.find(['@', ':']).map_or(0, |at| short.len() - at);
    let mut tries =
        [name, &name[..name.len() - tag], short, &short[..short.len() - tag]].into_iter();
    tries.find_map(|key| images.get(key)).map(String::as_str)
}

/// A program with a slash is relative to the directory; another is looked for on PATH.
fn find(program: &str, dir: &Path, env: &Env) -> Option<PathBuf> {
    if program.contains('/') {
        let path = dir.join(program);
        return is_executable(&path).then_some(path);
    }
    let path = env.get("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
    path.split(':').map(|dir| Path::new(dir).join(program)).find(|p| is_executable(p))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Words as a shell would split them, with '…', "…" and backslash; nothing is expanded.
pub fn split(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, container: Value) -> Pod {
        let object = json!({"metadata": {"annotations": annotations},
                            "spec": {"containers": [container]}});
        weft_kinds::views::read(&object).unwrap()
    }

    fn check(annotations: Value, container: Value, images: &[(&str, &str)]) -> String {
        let pod = pod(annotations, container);
        let images = images.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let mut env = Env::default();
        env.set("PATH", "/nowhere:/bin");
        env.set("PORT", "8080");
        match resolve(&pod, &pod.spec.containers[0], &env, &images, Path::new("/")) {
            Ok(c) => {
                format!("{} {} in {}", c.program.display(), c.args.join("|"), c.workdir.display())
            }
            Err(e) => format!("{}: {e}", e.reason()),
        }
    }

    #[test]
    fn the_annotation_wins_over_the_image_map_over_the_command() {
        let container = json!({"image": "reg.io/x/user:1.0", "command": ["sh", "-c"],
                               "args": ["$(PORT)"], "name": "c"});
        let images = [("user:1.0", "bin/cat -u")];
        let by_annotation = json!({"weft.dev/command": "sh -e 'a b'"});
        assert_eq!(check(by_annotation, container.clone(), &images), "/bin/sh -e|a b|8080 in /");
        assert_eq!(check(json!({}), container.clone(), &images), "/bin/cat -u|8080 in /");
        assert_eq!(check(json!({}), container.clone(), &[]), "/bin/sh -c|8080 in /");
        for key in ["reg.io/x/user", "user", "reg.io/x/user:1.0"] {
            let images = [(key, "bin/cat -u")];
            assert_eq!(check(json!({}), container.clone(), &images), "/bin/cat -u|8080 in /");
        }
        let by_name = json!({"weft.dev/command.c": "ls", "weft.dev/workdir": "tmp"});
        assert_eq!(check(by_name, container, &images), "/bin/ls 8080 in /tmp");
    }

    #[test]
    fn a_missing_program_or_mapping_is_a_sentence_with_the_next_step() {
        let text = check(json!({}), json!({"image": "user:1.0", "args": ["sh"]}), &[]);
        assert!(text.contains("--image user:1.0=COMMAND"), "{text}");
        let missing = json!({"image": "i", "name": "c", "command": ["./nothing"]});
        let text = check(json!({}), missing, &[]);
        assert!(text.starts_with("CreateContainerError") && text.contains("./nothing"), "{text}");
        let text = check(json!({}), json!({"command": ["no-such-tool"]}), &[]);
        assert!(text.contains("on PATH"), "{text}");
        let text = check(json!({"weft.dev/command": "a 'b"}), json!({}), &[]);
        assert!(text.contains("quote"), "{text}");
        let text = check(json!({"weft.dev/workdir": "no/such"}), json!({"command": ["sh"]}), &[]);
        assert!(text.contains("working directory"), "{text}");
    }

    #[test]
    fn words_split_as_in_a_shell() {
        for (line, words) in [
            ("a b", Some(vec!["a", "b"])),
            ("  a  ", Some(vec!["a"])),
            ("'a b' \"c d\" e\\ f ''", Some(vec!["a b", "c d", "e f", ""])),
            ("a'b'c", Some(vec!["abc"])),
            ("'a", None),
            ("a\\", None),
        ] {
            let got = split(line);
            let want = words.map(|w| w.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(got, want, "{line}");
        }
    }
}
