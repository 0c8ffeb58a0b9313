// SPDX-License-Identifier: Apache-2.0
//! Hooks, and the order in which a pod's containers are asked to end: the apps first, then the
//! init containers that run beside them, the last one first.

use weft_base::clock::Mono;

use super::{Action, HookKind, Life, Machine, Part};

// === impl Machine ===

impl Machine {
    /// The container's own way to end, if it has one, then SIGTERM. Its grace period has begun.
    pub(super) fn ask_to_end(&mut self, index: usize) {
        let Some(app) = self.apps.get_mut(index).filter(|a| a.is_running()) else { return };
        let (part, attempt, name) = (Part::App(index), app.attempt, app.name.clone());
        if !app.has_pre_stop {
            self.actions.push_back(Action::Signal { part, attempt, kill: false });
        } else if !app.pre_stopping {
            app.pre_stopping = true;
            let hook = HookKind::PreStop;
            self.actions.push_back(Action::Hook { part, attempt, hook });
        }
        if self.life != Life::Up {
            self.note(false, "Killing", format!("Stopping container {name}"));
        }
    }

    pub(super) fn on_hook(
        &mut self,
        part: Part,
        attempt: u32,
        hook: HookKind,
        failed: Option<String>,
        now: Mono,
    ) {
        let grace = std::time::Duration::from_secs(self.pod.grace_seconds());
        self.changed = true;
        let Some(c) = self.current(part, attempt) else { return };
        let name = c.name.clone();
        match (hook, failed) {
            (HookKind::PostStart, None) => c.post_started = true,
            (HookKind::PostStart, Some(why)) => {
                // As in Kubernetes: it is ended, and its restart policy says what is next.
                c.set_kill_at(now.plus(grace));
                self.actions.push_back(Action::Signal { part, attempt, kill: false });
                let text = format!("PostStart hook of {name} failed: {why}");
                self.note(true, "FailedPostStartHook", text);
            }
            (HookKind::PreStop, failed) => {
                self.actions.push_back(Action::Signal { part, attempt, kill: false });
                if let Some(why) = failed {
                    let text = format!("PreStop hook of {name} failed: {why}");
                    self.note(true, "FailedPreStopHook", text);
                }
            }
        }
    }

    /// Once the apps have ended, what runs beside them ends one by one, the last begun first.
    pub(super) fn end_what_is_beside(&mut self) {
        let Life::StoppingApps { killed: false, .. } = self.life else { return };
        if self.apps.iter().any(|a| a.is_running() && !a.beside) {
            return;
        }
        let last = self.apps.iter().rposition(|a| a.beside && a.is_running());
        if let Some(index) = last.filter(|_| last != self.beside_asked) {
            self.beside_asked = last;
            self.ask_to_end(index);
        }
    }
}
