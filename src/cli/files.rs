//! Files that a command writes for other programs: the report, the test report, the image
//! definitions.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};

use super::Failure;

/// Writes `content` to `path`. A regular file is replaced as a whole, so that a reader sees all of
/// it or the one before; its mode stays. A link is followed. A device or a pipe is written to, and
/// the file to which our own output goes (`/dev/stdout`) is continued.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let written = match fs::metadata(path) {
        Ok(there) if is_our_output(&there) => OpenOptions::new()
            .append(true)
            .open(path)
            .and_then(|mut output| output.write_all(content)),
        Ok(there) if there.is_file() => path
            .canonicalize()
            .and_then(|file| replace(&file, content, Some(there.permissions()))),
        Ok(there) if there.file_type().is_fifo() => write_to_pipe(path, content),
        Ok(_) => OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut device| device.write_all(content)),
        // Nothing is there, or a link to nothing, which leads to where the file belongs.
        Err(_) if path.is_symlink() => fs::write(path, content),
        Err(_) => replace(path, content, None),
    };
    written.map_err(|error| {
        let text = format!("{} cannot be written", path.display());
        Failure::new(1, anyhow::Error::new(error).context(text))
    })
}

/// Whether it is what our standard output or error goes to.
fn is_our_output(file: &fs::Metadata) -> bool {
    is_same(file, io::stdout().as_fd()) || is_same(file, io::stderr().as_fd())
}

fn is_same(file: &fs::Metadata, output: BorrowedFd<'_>) -> bool {
    fstat(output).is_ok_and(|output| (output.st_dev, output.st_ino) == (file.dev(), file.ino()))
}

fn replace(path: &Path, content: &[u8], mode: Option<fs::Permissions>) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    if let Some(mode) = mode {
        file.set_permissions(mode)?;
    }
    file.write_all(content)?;
    fs::rename(&beside, path)
}

/// A pipe that no program reads is an error; waiting for a reader could last for ever.
fn write_to_pipe(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut pipe = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    fcntl_setfl(&pipe, fcntl_getfl(&pipe)? - OFlags::NONBLOCK)?;
    pipe.write_all(content)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.json");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link");
        symlink("report.json", &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_link_to_nothing_leads_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("later.json", &link).unwrap();
        write(&link, b"text").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(folder.path().join("later.json")).unwrap(), b"text");
    }

    /// `--report /dev/null` put a regular file in the place of the device.
    #[test]
    fn devices_and_pipes_are_written_to() {
        write(Path::new("/dev/null"), b"text").unwrap();
        let device = fs::metadata("/dev/null").unwrap().file_type();
        assert!(device.is_char_device());
        assert!(write(Path::new("/dev/full"), b"text").is_err());

        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(write(&pipe, b"text").is_err(), "no program reads it");
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&pipe)
            .unwrap();
        write(&pipe, b"text").unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "text");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}
