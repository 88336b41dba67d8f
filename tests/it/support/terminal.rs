//! A program on a terminal: `script` gives it one, its output is drawn on a screen as a terminal
//! draws it, and keys reach it as they reach a person's programs.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Ferry;

/// Columns and rows. All that a test prints fits.
const SIZE: (usize, usize) = (160, 50);
/// What the terminal makes an interrupt of.
const CTRL_C: u8 = 3;

/// The program and its terminal.
pub struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<Screen>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Starts a command of the program.
    pub fn start(ferry: &Ferry, command: &str) -> Terminal {
        let (columns, rows) = SIZE;
        let line = format!("stty cols {columns} rows {rows}; exec blobferry {command}");
        let mut child = ferry
            .command_with_program_in_path("script")
            .args(["-qefc", &line, "/dev/null"])
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm")
            .env("BLOBFERRY_CONFIG", ferry.path("blobferry.yaml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("script is installed");
        let keys = child.stdin.take().expect("stdin is piped");
        let mut output = child.stdout.take().expect("stdout is piped");
        let screen = Arc::<Mutex<Screen>>::default();
        let drawn = screen.clone();
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            while let Ok(count) = output.read_buf(&mut bytes).await
                && count > 0
            {
                let mut screen = drawn.lock().expect("no panic while drawing");
                bytes.drain(..count).for_each(|byte| screen.take(byte));
            }
        });
        Terminal {
            child,
            keys,
            screen,
            reader,
        }
    }

    /// Presses Ctrl-C.
    pub async fn interrupt(&mut self) {
        self.keys.write_all(&[CTRL_C]).await.expect("a terminal");
    }

    /// What is on the screen now.
    pub fn text(&self) -> String {
        self.screen.lock().expect("no panic while drawing").text()
    }

    /// Waits for the end; returns the exit code and what is left on the screen.
    pub async fn ended(self) -> (i32, String) {
        let Terminal {
            mut child,
            keys,
            screen,
            reader,
        } = self;
        let status = timeout(Duration::from_secs(60), child.wait()).await;
        let code = match status {
            Ok(status) => status.expect("waiting for a child").code().unwrap_or(-1),
            Err(_) => panic!("no end:\n{}", screen.lock().expect("no panic").text()),
        };
        drop(keys);
        reader.await.expect("the screen is drawn");
        let text = screen.lock().expect("no panic while drawing").text();
        (code, text)
    }
}

/// A screen that scrolls never. It knows the sequences that programs with bars use; another one is
/// an error.
#[derive(Default)]
struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Bytes of a character or sequence that is not whole yet.
    pending: Vec<u8>,
}

impl Screen {
    fn take(&mut self, byte: u8) {
        self.pending.push(byte);
        if self.pending[0] == 0x1b {
            let is_over = match self.pending.as_slice() {
                [_] | [_, b'['] => false,
                [_, b'[', .., last] => (0x40..=0x7e).contains(last),
                [..] => true,
            };
            if is_over {
                let sequence = std::mem::take(&mut self.pending);
                self.control(&String::from_utf8(sequence).expect("a sequence in ASCII"));
            }
            return;
        }
        if let Ok(text) = std::str::from_utf8(&self.pending) {
            let character = text.chars().next().expect("one character");
            self.pending.clear();
            self.print(character);
        }
    }

    fn control(&mut self, sequence: &str) {
        let inside = &sequence[2..];
        let (parameter, last) = inside.split_at(inside.len() - 1);
        let count = parameter.parse().unwrap_or(1);
        match last {
            "A" => self.row = self.row.saturating_sub(count),
            "B" => self.row += count,
            "C" => self.column += count,
            "D" => self.column = self.column.saturating_sub(count),
            "K" => {
                let line = self.line();
                match parameter {
                    "2" => line.clear(),
                    "" | "0" => {
                        let column = self.column;
                        self.line().truncate(column);
                    }
                    _ => panic!("{sequence:?}"),
                }
            }
            "m" | "h" | "l" => {}
            _ => panic!("the screen does not know {sequence:?}"),
        }
    }

    fn print(&mut self, character: char) {
        match character {
            '\r' => self.column = 0,
            '\n' => self.row += 1,
            '\u{8}' => self.column = self.column.saturating_sub(1),
            '\u{7}' => {}
            _ => {
                if self.column == SIZE.0 {
                    self.column = 0;
                    self.row += 1;
                }
                let column = self.column;
                let line = self.line();
                line.resize(line.len().max(column + 1), ' ');
                line[column] = character;
                self.column += 1;
            }
        }
    }

    fn line(&mut self) -> &mut Vec<char> {
        assert!(self.row < SIZE.1, "the text does not fit the screen");
        let rows = self.lines.len().max(self.row + 1);
        self.lines.resize(rows, Vec::new());
        &mut self.lines[self.row]
    }

    fn text(&self) -> String {
        let lines = self
            .lines
            .iter()
            .map(|line| line.iter().collect::<String>());
        lines
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }
}
