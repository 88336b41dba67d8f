//! A real browser: Chromium without a window, driven through chromedriver by the WebDriver
//! protocol, which is JSON over HTTP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use super::eventually;
use super::registry::installed;

/// How long the end of a browser is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The key of an element in answers of WebDriver.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one tab; gone when dropped.
pub struct Browser {
    driver: Child,
    http: reqwest::Client,
    /// The address of its session.
    session: String,
    /// Open as long as chromedriver may say something.
    _said: BufReader<ChildStdout>,
}

impl Browser {
    pub async fn start() -> Browser {
        let program = installed(
            &["chromedriver"],
            "apt-get install chromium chromium-driver",
        );
        let started = tokio::task::spawn_blocking(move || listening(&program)).await;
        let (driver, port, said) = started.expect("no panic");
        let http = reqwest::Client::builder().no_proxy().build();
        let mut browser = Browser {
            driver,
            http: http.expect("a client without options"),
            session: format!("http://127.0.0.1:{port}"),
            _said: said,
        };
        // The sandbox takes rights that a container may lack; what is opened here is ours.
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
        ];
        let capabilities = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        });
        let body = json!({"capabilities": {"alwaysMatch": capabilities}});
        let answer = browser.ask(Method::POST, "/session", body).await;
        let id = answer["sessionId"].as_str().expect("a session has an id");
        browser.session = format!("{}/session/{id}", browser.session);
        browser
    }

    pub async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
    }

    /// Runs the body of a function in the page; returns what it returns, or what it promises.
    pub async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []}))
            .await
    }

    /// Waits until an expression is true in the page.
    pub async fn until(&self, expression: &str) {
        let script = format!("return !!({expression})");
        for _ in 0..600 {
            if self.run(&script).await == json!(true) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let shown = self.text().await;
        panic!("not {expression} within 30 s; the page shows:\n{shown}");
    }

    /// Waits until the page shows a text.
    pub async fn shows(&self, text: &str) {
        let text = json!(text);
        self.until(&format!("document.body.innerText.includes({text})"))
            .await;
    }

    /// What the page shows.
    pub async fn text(&self) -> String {
        let text = self.run("return document.body.innerText").await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits for an element by its CSS selector, and clicks on it as a person does: again, where the
    /// page has put another one in its place meanwhile.
    pub async fn click(&self, selector: &str) {
        eventually(&format!("a click on {selector}"), async || {
            let element = self.element(selector).await;
            let path = format!("/element/{element}/click");
            let (is_success, answer) = self.answer(Method::POST, &path, json!({})).await;
            let is_stale = answer["error"] == "stale element reference";
            assert!(is_success || is_stale, "{selector}: {answer:#}");
            is_success.then_some(())
        })
        .await;
    }

    /// Waits for an element, and types into it.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/value"), json!({"text": text}))
            .await;
    }

    /// Presses keys, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})))
            .collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", json!({"actions": [keyboard]})).await;
    }

    /// What the console says; each line once.
    pub async fn console(&self) -> Vec<Value> {
        let lines = self.post("/se/log", json!({"type": "browser"})).await;
        lines.as_array().expect("a list").clone()
    }

    /// Shows pages in a window of this size, in the dark or the light colour scheme.
    pub async fn look_at(&self, width: u32, height: u32, scheme: &str) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.tools("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({"name": "prefers-color-scheme", "value": scheme});
        let media = json!({"features": [scheme]});
        self.tools("Emulation.setEmulatedMedia", media).await;
    }

    /// A picture of the window, in PNG.
    pub async fn picture(&self) -> Vec<u8> {
        let picture = self.ask(Method::GET, "/screenshot", Value::Null).await;
        let picture = STANDARD.decode(picture.as_str().expect("a text"));
        picture.expect("base64")
    }

    async fn tools(&self, command: &str, parameters: Value) {
        let body = json!({"cmd": command, "params": parameters});
        self.post("/goog/cdp/execute", body).await;
    }

    async fn element(&self, selector: &str) -> String {
        let body = json!({"using": "css selector", "value": selector});
        eventually(&format!("an element {selector}"), async || {
            let found = self.post("/elements", body.clone()).await;
            Some(found[0][ELEMENT].as_str()?.to_owned())
        })
        .await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.ask(Method::POST, path, body).await
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let (is_success, answer) = self.answer(method, path, body).await;
        assert!(is_success, "{path}: {answer:#}");
        answer
    }

    /// Whether a command succeeded, and what it or its error is.
    async fn answer(&self, method: Method, path: &str, body: Value) -> (bool, Value) {
        let url = format!("{}{path}", self.session);
        let mut request = self.http.request(method, url);
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        let answer = request.send().await.expect("chromedriver answers");
        let is_success = answer.status().is_success();
        let answer = answer.bytes().await.expect("a body");
        let mut answer: Value = serde_json::from_slice(&answer).expect("JSON");
        (is_success, answer["value"].take())
    }
}

impl Drop for Browser {
    /// The driver ends its browser with the session; killed, it would leave it behind.
    fn drop(&mut self) {
        let _ended = end(&self.session);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Ends a session, and waits for that.
fn end(session: &str) -> std::io::Result<()> {
    let Some((host, path)) = session.trim_start_matches("http://").split_once('/') else {
        return Ok(());
    };
    let mut driver = TcpStream::connect(host)?;
    driver.set_read_timeout(Some(PATIENCE))?;
    write!(
        driver,
        "DELETE /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    driver.read(&mut [0; 512]).map(drop)
}

/// A driver that listens, its port, and what it says from then on. It takes a port that is free for
/// IPv4, and ends where another process has it for IPv6: the next one takes another.
fn listening(program: &Path) -> (Child, u16, BufReader<ChildStdout>) {
    for _ in 0..10 {
        let mut driver = Command::new(program)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let said = BufReader::new(driver.stdout.take().expect("stdout is piped"));
        if let Some((port, said)) = port(said) {
            return (driver, port, said);
        }
        driver.wait().expect("chromedriver has ended");
    }
    panic!("chromedriver ended ten times before it listened");
}

/// The port that chromedriver says it took. `None`: it has ended.
fn port(mut said: BufReader<ChildStdout>) -> Option<(u16, BufReader<ChildStdout>)> {
    loop {
        let mut line = String::new();
        let length = said.read_line(&mut line).expect("chromedriver speaks");
        if length == 0 {
            return None;
        }
        let port = line.strip_prefix("ChromeDriver was started successfully on port ");
        if let Some(port) = port {
            let port = port.trim().trim_end_matches('.').parse();
            return Some((port.expect("a port"), said));
        }
    }
}
