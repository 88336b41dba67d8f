//! The Docker configuration and its kin: `config.json` of Docker, `auth.json` of Podman and Skopeo,
//! and credential helpers.
//!
//! Per file `credHelpers` beats `credsStore` beats `auths`; a helper that has nothing leaves the
//! word to `auths`, and a file that has nothing to the next. Keys may hold a scheme and `/v1/` or
//! `/v2/`, all of which is ignored, or a path below the host: the longest that matches wins. A file
//! that is not there is passed over; one that cannot be read is a fault that names it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::helper;
use super::login::{Login, TOKEN_USER};
use crate::fault::{Class, Fault};

/// Largest file that is read, in bytes.
const MOST_BYTES: u64 = 1024 * 1024;
/// How long a file is taken to be as it was last seen.
const UNWATCHED: Duration = Duration::from_secs(1);

/// Credentials in files, by registry and repository. Cheap to clone; clones share what was read.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    paths: Vec<PathBuf>,
    helpers: helper::Helpers,
    read: Mutex<HashMap<PathBuf, CachedFile>>,
}

#[derive(Clone)]
struct CachedFile {
    looked: Instant,
    state: Option<(SystemTime, u64)>,
    file: Arc<File>,
}

impl Store {
    /// A store over `paths`, the first that knows a registry has it. `helper_path` is where helpers
    /// are looked for, written like `$PATH`; without it where the process looks for programs.
    pub fn new(paths: Vec<PathBuf>, helper_path: Option<OsString>) -> Store {
        Store(Arc::new(Inner {
            paths,
            helpers: helper::Helpers::new(helper_path),
            read: Mutex::default(),
        }))
    }

    /// The store over the files that Docker, Podman and Skopeo use, found by `env`.
    pub fn standard(env: impl Fn(&str) -> Option<String>) -> Store {
        let set = |name: &str| {
            env(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = set("HOME");
        let docker = set("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
        let paths = [
            docker.map(|folder| folder.join("config.json")),
            set("REGISTRY_AUTH_FILE"),
            set("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
            set("XDG_CONFIG_HOME")
                .or_else(|| Some(home.as_ref()?.join(".config")))
                .map(|folder| folder.join("containers/auth.json")),
        ];
        Store::new(
            paths.into_iter().flatten().collect(),
            env("PATH").map(OsString::from),
        )
    }

    /// The candidate files, first to last.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0.paths
    }

    /// What to show at `host` for `repository`; anonymous when no file knows them.
    pub(super) async fn login(&self, host: &str, repository: Option<&str>) -> Result<Login, Fault> {
        self.look_up(host, repository, false).await
    }

    /// The same with files looked at and helpers run again.
    pub(super) async fn login_afresh(
        &self,
        host: &str,
        repository: Option<&str>,
    ) -> Result<Login, Fault> {
        self.look_up(host, repository, true).await
    }

    async fn look_up(
        &self,
        host: &str,
        repository: Option<&str>,
        afresh: bool,
    ) -> Result<Login, Fault> {
        let keys = keys_for(host, repository);
        for path in &self.0.paths {
            let file = self.0.file(path, afresh).await?;
            if let Some((helper, server)) = file.helper(&keys, host) {
                let found = self.0.helpers.login(helper, &server, afresh).await;
                let found = found.map_err(|fault| {
                    fault.while_doing(format_args!("{} for {host}", path.display()))
                })?;
                if let Some(login) = found {
                    return Ok(login);
                }
            }
            if let Some((key, auth)) = file.auth(&keys)
                && let Some(login) = auth
                    .login()
                    .map_err(|reason| file.broken(path, &format!("the entry \"{key}\" {reason}")))?
            {
                return Ok(login);
            }
        }
        Ok(Login::Anonymous)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("docker::Store").field(&self.0.paths).finish()
    }
}

impl Inner {
    async fn file(&self, path: &Path, afresh: bool) -> Result<Arc<File>, Fault> {
        let seen = self
            .read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(path)
            .cloned();
        if let Some(seen) = seen
            .as_ref()
            .filter(|seen| !afresh && seen.looked.elapsed() < UNWATCHED)
        {
            return Ok(Arc::clone(&seen.file));
        }
        let unreadable = |error: io::Error| {
            Fault::new(Class::Auth, format!("cannot read {}", path.display())).because(error)
        };
        let state = state(path).await.map_err(unreadable)?;
        let file = match seen.filter(|seen| seen.state == state) {
            Some(seen) => seen.file,
            None if state.is_none() => Arc::default(),
            None => Arc::new(File::parse(
                path,
                &contents(path).await.map_err(unreadable)?,
            )?),
        };
        let seen = CachedFile {
            looked: Instant::now(),
            state,
            file: Arc::clone(&file),
        };
        self.read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.to_owned(), seen);
        Ok(file)
    }
}

/// When the file was last written, and its length. `None`: there is no such file for us.
async fn state(path: &Path) -> io::Result<Option<(SystemTime, u64)>> {
    match tokio::fs::metadata(path).await {
        Ok(metadata) if metadata.file_type().is_fifo() => {
            Err(io::Error::other("it is a pipe, not a regular file"))
        }
        Ok(metadata) => Ok(Some((metadata.modified()?, metadata.len()))),
        // A sandbox hides home folders by denying them; a file that we may not read is denied
        // later, when it is opened.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tokio::fs::File::open(path)
        .await?
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .await?;
    if bytes.len() as u64 > MOST_BYTES {
        Err(io::Error::other("longer than 1 MiB"))
    } else {
        Ok(bytes)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    auths: BTreeMap<String, Option<Auth>>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<SecretString>,
    username: Option<String>,
    password: Option<SecretString>,
    identitytoken: Option<SecretString>,
    registrytoken: Option<SecretString>,
}

impl File {
    fn parse(path: &Path, bytes: &[u8]) -> Result<File, Fault> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(File::default());
        }
        // The parser's own words quote what it met, which may be a password.
        serde_json::from_slice(bytes).map_err(|error| {
            let place = format!(
                "line {}, column {} is not as it should be",
                error.line(),
                error.column()
            );
            File::default().broken(path, &place)
        })
    }

    fn broken(&self, path: &Path, reason: &str) -> Fault {
        Fault::new(
            Class::Auth,
            format!("{} is no Docker configuration: {reason}", path.display()),
        )
    }

    /// The helper for the first of `keys` that has one, and what to call the registry there.
    fn helper(&self, keys: &[String], host: &str) -> Option<(&str, String)> {
        if let Some((key, helper)) =
            first(&self.helpers, keys).filter(|(_, helper)| !helper.is_empty())
        {
            return Some((helper, key.to_owned()));
        }
        let store = self.store.as_deref().filter(|store| !store.is_empty())?;
        let known = first(&self.auths, keys).map(|(key, _)| key.to_owned());
        Some((store, known.unwrap_or_else(|| server(host))))
    }

    fn auth(&self, keys: &[String]) -> Option<(&str, &Auth)> {
        let (key, auth) = first(&self.auths, keys)?;
        Some((key, auth.as_ref()?))
    }
}

fn filled(secret: &Option<SecretString>) -> Option<SecretString> {
    secret
        .clone()
        .filter(|secret| !secret.expose_secret().is_empty())
}

impl Auth {
    /// `None`: the entry only marks a login; a credential helper holds the secret.
    fn login(&self) -> Result<Option<Login>, &'static str> {
        let mut username = self.username.clone().filter(|name| !name.is_empty());
        let mut password = filled(&self.password);
        if let Some(auth) = filled(&self.auth) {
            let (name, word) = decode(auth.expose_secret())
                .ok_or("holds an auth that is not base64 of user:password")?;
            username = Some(name).filter(|name| !name.is_empty());
            password = Some(word);
        }
        if let Some(token) = filled(&self.registrytoken) {
            return Ok(Some(Login::Bearer(token)));
        }
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Login::Identity {
                username: username.filter(|name| name != TOKEN_USER),
                token,
            }));
        }
        Ok(username
            .zip(password)
            .map(|(username, password)| Login::from_pair(username, password)))
    }
}

fn decode(auth: &str) -> Option<(String, SecretString)> {
    let auth = auth.trim();
    let bytes = STANDARD
        .decode(auth)
        .or_else(|_| STANDARD_NO_PAD.decode(auth))
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.trim_end_matches('\0').into()))
}

/// The keys to look for, longest first.
fn keys_for(host: &str, repository: Option<&str>) -> Vec<String> {
    let host = canonical_host(host);
    let mut keys = Vec::new();
    let mut path = repository;
    while let Some(prefix) = path {
        keys.push(format!("{host}/{prefix}"));
        path = prefix.rsplit_once('/').map(|(parent, _)| parent);
    }
    keys.push(host);
    keys
}

fn first<'a, T>(entries: &'a BTreeMap<String, T>, keys: &[String]) -> Option<(&'a str, &'a T)> {
    keys.iter().find_map(|wanted| {
        let found = entries.iter().find(|(key, _)| canonical(key) == *wanted);
        found.map(|(key, entry)| (key.as_str(), entry))
    })
}

fn canonical(key: &str) -> String {
    let key = key.trim();
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/');
    match key.split_once('/') {
        None | Some((_, "v1" | "v2")) => canonical_host(key.split('/').next().unwrap_or(key)),
        Some((host, path)) => format!("{}/{path}", canonical_host(host)),
    }
}

/// One spelling for each registry: lower case, no default port, one name for Docker Hub.
fn canonical_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            "docker.io".to_owned()
        }
        _ => host.to_owned(),
    }
}

/// What a helper knows a registry as when no file says otherwise.
fn server(host: &str) -> String {
    match canonical_host(host).as_str() {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(login: &Login) -> String {
        match login {
            Login::Anonymous => "anonymous".to_owned(),
            Login::Basic { username, password } => {
                format!("basic {username} {}", password.expose_secret())
            }
            Login::Identity { username, token } => {
                format!("identity {username:?} {}", token.expose_secret())
            }
            Login::Bearer(token) => format!("bearer {}", token.expose_secret()),
        }
    }

    fn store_of(folder: &tempfile::TempDir, texts: &[&str]) -> Store {
        let paths = texts.iter().enumerate().map(|(number, text)| {
            let path = folder.path().join(format!("{number}.json"));
            std::fs::write(&path, text).unwrap();
            path
        });
        Store::new(paths.collect(), Some(folder.path().as_os_str().to_owned()))
    }

    async fn found(store: &Store, host: &str, repository: &str) -> String {
        show(&store.login(host, Some(repository)).await.unwrap())
    }

    #[tokio::test]
    async fn the_longest_key_wins_whatever_its_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let entry =
            |user: &str| format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(format!("{user}:p:w")));
        let text = format!(
            r#"{{"auths":{{"https://R.example.com/v2/":{},"r.example.com/team":{},"r.example.com/team/app":{},
                "http://other.example.com:5000":{},"https://index.docker.io/v1/":{},"ported.example.com:443":{}}}}}"#,
            entry("host"),
            entry("team"),
            entry("app"),
            entry("port"),
            entry("hub"),
            entry("tls")
        );
        let store = store_of(&folder, &[&text]);
        let rows = [
            ("r.example.com", "team/app", "basic app p:w"),
            ("r.example.com", "team/app/deep", "basic app p:w"),
            ("r.example.com", "team/application", "basic team p:w"),
            ("r.example.com", "teams", "basic host p:w"),
            ("r.example.com:443", "x", "basic host p:w"),
            ("r.example.com:5000", "x", "anonymous"),
            ("other.example.com:5000", "x", "basic port p:w"),
            ("other.example.com", "x", "anonymous"),
            ("registry-1.docker.io", "library/alpine", "basic hub p:w"),
            ("docker.io", "library/alpine", "basic hub p:w"),
            ("ported.example.com", "x", "basic tls p:w"),
        ];
        for (host, repository, expected) in rows {
            assert_eq!(
                found(&store, host, repository).await,
                expected,
                "{host} {repository}"
            );
        }
        assert_eq!(
            show(&store.login("r.example.com", None).await.unwrap()),
            "basic host p:w"
        );
    }

    #[tokio::test]
    async fn every_form_of_an_entry_is_understood() {
        let auth = |text: &str| STANDARD.encode(text);
        let rows = [
            (
                format!(r#"{{"auth":"{}"}}"#, auth("joe:pass\0")),
                "basic joe pass",
            ),
            (
                format!(r#"{{"auth":"{}"}}"#, auth("joe:x").trim_end_matches('=')),
                "basic joe x",
            ),
            (
                r#"{"username":"joe","password":"pass"}"#.to_owned(),
                "basic joe pass",
            ),
            (
                format!(r#"{{"auth":"{}","identitytoken":"idt"}}"#, auth("joe:")),
                "identity Some(\"joe\") idt",
            ),
            (
                format!(r#"{{"auth":"{}"}}"#, auth("<token>:idt")),
                "identity None idt",
            ),
            (
                r#"{"username":"<token>","identitytoken":"idt"}"#.to_owned(),
                "identity None idt",
            ),
            (
                r#"{"registrytoken":"rt","identitytoken":"x"}"#.to_owned(),
                "bearer rt",
            ),
            ("{}".to_owned(), "anonymous"),
            ("null".to_owned(), "anonymous"),
            (
                r#"{"auth":"","email":"joe@example.com"}"#.to_owned(),
                "anonymous",
            ),
        ];
        for (entry, expected) in rows {
            let folder = tempfile::tempdir().unwrap();
            let store = store_of(
                &folder,
                &[&format!(
                    r#"{{"auths":{{"r.example.com":{entry}}},"HttpHeaders":{{}}}}"#
                )],
            );
            assert_eq!(
                found(&store, "r.example.com", "x").await,
                expected,
                "{entry}"
            );
        }
    }

    #[tokio::test]
    async fn a_broken_file_is_named_and_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            r#"{"auths":{"r":{"auth":"hush"}}}"#,
            r#"{"auths":{"r":"hush"}}"#,
            r#"{"auths": hush"#,
            r#"{"auths":"hush"}"#,
        ] {
            let fault = store_of(&folder, &[text])
                .login("r", None)
                .await
                .unwrap_err();
            assert_eq!(fault.class(), Class::Auth);
            assert!(
                fault.chain().contains("0.json") && !fault.chain().contains("hush"),
                "{fault:?}"
            );
        }
        let long = " ".repeat(MOST_BYTES as usize + 1);
        assert!(
            store_of(&folder, &[&long])
                .login("r", None)
                .await
                .unwrap_err()
                .chain()
                .contains("1 MiB")
        );
    }

    #[tokio::test]
    async fn the_first_file_that_knows_a_registry_has_it_and_missing_files_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|user| {
            format!(r#"{{"auths":{{"r":{{"username":"{user}","password":"p"}},"{user}":{{"username":"{user}","password":"p"}}}}}}"#)
        });
        let known = store_of(&folder, &[&a, &b, "", "  \n"]);
        let mut paths = vec![
            folder.path().join("missing.json"),
            folder.path().join("0.json/below-a-file"),
        ];
        paths.extend(known.paths().iter().cloned());
        let store = Store::new(paths, None);
        for (host, expected) in [("r", "basic a p"), ("b", "basic b p"), ("c", "anonymous")] {
            assert_eq!(found(&store, host, "x").await, expected);
        }
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = store_of(
            &folder,
            &[r#"{"auths":{"r":{"username":"joe","password":"old"}}}"#],
        );
        assert_eq!(found(&store, "r", "x").await, "basic joe old");
        std::fs::write(
            &store.paths()[0],
            r#"{"auths":{"r":{"username":"joe","password":"newer"}}}"#,
        )
        .unwrap();
        assert_eq!(
            show(&store.login_afresh("r", None).await.unwrap()),
            "basic joe newer"
        );
        std::fs::remove_file(&store.paths()[0]).unwrap();
        assert_eq!(
            show(&store.login_afresh("r", None).await.unwrap()),
            "anonymous"
        );
    }

    #[test]
    fn the_usual_files_are_found_by_the_environment() {
        let paths = |set: &[(&str, &str)]| {
            let env: HashMap<String, String> = set
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let store = Store::standard(|name| env.get(name).cloned());
            store
                .paths()
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(paths(&[]), Vec::<String>::new());
        assert_eq!(
            paths(&[("HOME", "/h"), ("DOCKER_CONFIG", "")]),
            ["/h/.docker/config.json", "/h/.config/containers/auth.json"]
        );
        let all = [
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/r.json"),
            ("XDG_RUNTIME_DIR", "/run/user/1"),
        ];
        let expected = [
            "/d/config.json",
            "/r.json",
            "/run/user/1/containers/auth.json",
            "/h/.config/containers/auth.json",
        ];
        assert_eq!(paths(&all), expected);
    }

    #[tokio::test]
    async fn helpers_come_before_entries_and_leave_them_the_word() {
        let folder = tempfile::tempdir().unwrap();
        helper::tests::script(
            &folder,
            "known",
            r#"read server; printf '{"Username":"helped-%s","Secret":"s"}' "$server""#,
        );
        helper::tests::script(
            &folder,
            "empty",
            "read server; echo 'credentials not found in native keychain'; exit 1",
        );
        let entry = r#"{"username":"entry","password":"p"}"#;
        let text = format!(
            r#"{{"auths":{{"https://r.example.com/v1/":{entry},"e.example.com":{entry}}},"credsStore":"known",
                "credHelpers":{{"e.example.com":"empty","h.example.com":"known","h.example.com/team":"empty"}}}}"#
        );
        let store = store_of(&folder, &[&text]);
        let rows = [
            (
                "r.example.com",
                "x",
                "basic helped-https://r.example.com/v1/ s",
            ),
            ("other.example.com", "x", "basic helped-other.example.com s"),
            (
                "registry-1.docker.io",
                "x",
                "basic helped-https://index.docker.io/v1/ s",
            ),
            ("e.example.com", "x", "basic entry p"),
            ("h.example.com", "x", "basic helped-h.example.com s"),
            ("h.example.com", "team/app", "anonymous"),
        ];
        for (host, repository, expected) in rows {
            assert_eq!(
                found(&store, host, repository).await,
                expected,
                "{host} {repository}"
            );
        }
    }
}
