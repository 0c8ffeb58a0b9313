// SPDX-License-Identifier: Apache-2.0
//! What `weft up` shows while it runs: a live table on a terminal, plain lines otherwise.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use crossterm::event::{Event, KeyCode, KeyModifiers, poll, read};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};
use serde_json::Value;

use crate::print;

/// Where progress goes.
#[derive(Debug)]
pub enum Show {
    Live(Box<DefaultTerminal>),
    Plain(Plain),
}

/// Plain lines: one whenever a service's health changes.
#[derive(Debug, Default)]
pub struct Plain {
    last: BTreeMap<String, String>,
}

// === impl Show ===

impl Show {
    /// Plain when asked for, or when standard output is no terminal.
    pub fn new(plain: bool) -> Self {
        if plain || !std::io::stdout().is_terminal() {
            return Self::Plain(Plain::default());
        }
        match ratatui::try_init() {
            Ok(terminal) => Self::Live(Box::new(terminal)),
            Err(_) => Self::Plain(Plain::default()),
        }
    }

    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Shows the facts of `/v1/weft/status` under a headline.
    pub fn update(&mut self, headline: &[String], facts: &Value) {
        match self {
            Self::Live(terminal) => {
                let _ = terminal.draw(|frame| draw(frame, headline, facts));
            }
            Self::Plain(plain) => plain.update(facts),
        }
    }

    /// Whether the person pressed Ctrl-C or q; a raw terminal sends no signal for it.
    pub fn wants_to_quit(&mut self) -> bool {
        if !matches!(self, Self::Live(_)) {
            return false;
        }
        while poll(std::time::Duration::ZERO).unwrap_or(false) {
            if let Ok(Event::Key(key)) = read() {
                let ctrl_c =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if ctrl_c || key.code == KeyCode::Char('q') {
                    return true;
                }
            }
        }
        false
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if matches!(self, Self::Live(_)) {
            ratatui::restore();
        }
    }
}

// === impl Plain ===

impl Plain {
    fn update(&mut self, facts: &Value) {
        let mut now = BTreeMap::new();
        for row in rows(facts, "services") {
            let name = format!("{}/{}", cell(&row, "namespace"), cell(&row, "service"));
            now.insert(name, format!("{}/{} ready", cell(&row, "ready"), cell(&row, "instances")));
        }
        for row in rows(facts, "problems") {
            now.insert(cell(&row, "object"), cell(&row, "reason"));
        }
        for (name, state) in &now {
            if self.last.get(name) != Some(state) {
                print::print_text(&format!("{name}: {state}\n"));
            }
        }
        for name in self.last.keys().filter(|n| !now.contains_key(*n)) {
            print::print_text(&format!("{name}: gone, or well again\n"));
        }
        self.last = now;
    }
}

const COLUMNS: [(&str, &str, u16); 7] = [
    ("SERVICE", "service", 28),
    ("INSTANCES", "instances", 10),
    ("READY", "ready", 7),
    ("RPS", "rps", 9),
    ("P50 MS", "p50_ms", 9),
    ("P99 MS", "p99_ms", 9),
    ("ERRORS/S", "errors_per_s", 9),
];

fn draw(frame: &mut Frame<'_>, headline: &[String], facts: &Value) {
    let services = rows(facts, "services");
    let problems = rows(facts, "problems");
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(u16::try_from(headline.len() + 1).unwrap_or(8)),
        Constraint::Length(u16::try_from(services.len() + 2).unwrap_or(20)),
        Constraint::Min(3),
    ])
    .areas(frame.area());
    let lines: Vec<Line<'_>> = headline.iter().map(|l| Line::from(l.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).bold(), top);
    let body = services.iter().map(|row| {
        let healthy =
            row.get("ready") == row.get("instances") && cell(row, "errors_per_s") == "0.0";
        let cells = COLUMNS.iter().map(|(_, key, _)| match *key {
            "service" => format!("{}/{}", cell(row, "namespace"), cell(row, "service")),
            key => cell(row, key),
        });
        let style = if healthy { Style::default() } else { Style::default().fg(Color::Yellow) };
        Row::new(cells.collect::<Vec<_>>()).style(style)
    });
    let widths = COLUMNS.map(|(_, _, width)| Constraint::Length(width));
    let header = Row::new(COLUMNS.map(|(title, ..)| title)).bold();
    frame.render_widget(Table::new(body, widths).header(header), middle);
    let mut lines: Vec<Line<'_>> = problems
        .iter()
        .map(|p| Line::from(format!("{}: {}", cell(p, "object"), cell(p, "reason"))).red())
        .collect();
    if lines.is_empty() {
        lines.push(Line::from("All is well. Ctrl-C ends everything.").green());
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), bottom);
}

fn rows(facts: &Value, key: &str) -> Vec<Value> {
    facts.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn cell(row: &Value, key: &str) -> String {
    row.get(key).map(print::cell).unwrap_or_default()
}
