//! The users of this machine: the name behind a user id, and the person behind root.
//!
//! Names come from `/etc/passwd` alone. A user of a directory service that the file does not list
//! keeps its number.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Bytes of `/etc/passwd` that are read at most.
const MOST_PASSWD: u64 = 4 << 20;
/// What the kernel says where no login was recorded.
const NO_LOGIN: u32 = u32::MAX;

/// What a process of user `uid` is called in reports: `user:alice`. Root is the user that logged
/// in, as the kernel's audit recorded it, else `user:root`. `uid:1000`: the user has no name.
pub fn principal(uid: u32, login_uid: Option<u32>) -> String {
    let passwd = read(Path::new("/etc/passwd"), MOST_PASSWD).unwrap_or_default();
    called(uid, login_uid, &passwd)
}

/// The user id with which process `pid` logged in, kept by the kernel through `su` and `sudo`.
/// `None`: it is not recorded, or this process may not know.
pub fn login_uid(pid: i32) -> Option<u32> {
    let path = format!("/proc/{pid}/loginuid");
    recorded(&read(Path::new(&path), 32)?)
}

fn called(uid: u32, login_uid: Option<u32>, passwd: &str) -> String {
    let uid = match (uid, login_uid) {
        (0, Some(login)) => login,
        _ => uid,
    };
    match (uid, name(uid, passwd)) {
        (0, _) => "user:root".into(),
        (_, Some(name)) => format!("user:{name}"),
        (uid, None) => format!("uid:{uid}"),
    }
}

fn recorded(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|uid| *uid != NO_LOGIN)
}

/// The first name that `passwd` gives to `uid`.
fn name(uid: u32, passwd: &str) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let is_it = fields.nth(1)?.parse() == Ok(uid);
        (is_it && !name.is_empty() && !name.chars().any(char::is_control)).then_some(name)
    })
}

/// The file's first `most` bytes; what is not UTF-8 is replaced, so that one odd name spoils no
/// other.
fn read(path: &Path, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(most)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/bash
broken line
alice:x:1000:1000:Alice,,,:/home/alice:/bin/sh
second:x:1000:1000::/:/bin/sh
:x:1001:1001::/:/bin/sh
";

    #[test]
    fn a_user_has_its_name_and_root_that_of_its_login() {
        for (uid, login, expected) in [
            (1000, None, "user:alice"),
            (1000, Some(0), "user:alice"),
            (0, None, "user:root"),
            (0, Some(0), "user:root"),
            (0, Some(1000), "user:alice"),
            (0, Some(4711), "uid:4711"),
            (1001, None, "uid:1001"),
            (4711, None, "uid:4711"),
        ] {
            assert_eq!(called(uid, login, PASSWD), expected, "{uid} {login:?}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf_8_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwd");
        std::fs::write(
            &path,
            b"odd\xff:x:7:7::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n",
        )
        .unwrap();
        let text = read(&path, MOST_PASSWD).unwrap();
        assert_eq!(called(1000, None, &text), "user:alice");
        let cut = read(&path, 4).unwrap();
        assert_eq!(called(1000, None, &cut), "uid:1000");
    }

    #[test]
    fn a_login_that_was_not_recorded_is_none() {
        assert_eq!(recorded("4294967295"), None);
        assert_eq!(recorded("1000\n"), Some(1000));
        assert_eq!(recorded(""), None);
        assert_eq!(login_uid(i32::MAX), None);
    }
}
