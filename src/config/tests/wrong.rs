//! Files that are wrong: every complaint with its line, column and key.

use std::fs;

use super::*;

/// Whole files.
const WHOLE: &[(&str, &str)] = &[
    (
        "",
        "1:1: the file is empty; it needs `registries` and `routes`",
    ),
    ("[]", "1:1: expected a mapping, found a list"),
    ("just text\n", "1:1: expected a mapping, found one value"),
    (
        "registries: [\n",
        "1:13: not valid YAML: unclosed bracket '['",
    ),
    (
        "a: b: c\n",
        "1:5: not valid YAML: mapping values are not allowed in this context",
    ),
    (
        "a: *nobody\n",
        "1:4: not valid YAML: reference to unknown value",
    ),
    ("a: !odd b\n", "1:9: not valid YAML: unsupported tag `!odd`"),
    (
        "a: 1\n---\nb: 2\n",
        "3:1: not valid YAML: only single YAML document expected but multiple found",
    ),
    (
        "registries: {}\nroutes: []\n",
        "1:13: registries: is empty: name at least one registry\n2:9: routes: is empty: say what goes where",
    ),
    (
        "daemon:\nregistries:\nroutes:\n",
        "2:1: registries: has no value: name those that the routes read and write\n3:1: routes: has no value: say what goes where",
    ),
    (
        "registry: {}\n",
        "1:1: registries: is missing: name those that the routes read and write\n1:1: routes: is missing: say what goes where\n1:1: registry: unknown key; known here: daemon, registries, receivers, queues, sets, defaults, routes",
    ),
    (
        "registries: [a]\nroutes: {a: b}\n",
        "1:13: registries: expected a mapping, found a list\n2:9: routes: expected a list, found a mapping",
    ),
];

/// Before registries and routes that are right.
const DAEMON: &[(&str, &str)] = &[
    (
        "daemon:\n  lisen: 127.0.0.1:1\n",
        "2:3: daemon.lisen: unknown key; did you mean \"listen\"?",
    ),
    (
        "daemon:\n  listen: localhost\n",
        "2:11: daemon.listen: \"localhost\" is not an IP address with a port (127.0.0.1:9464, [::1]:9464) or off",
    ),
    (
        "daemon:\n  poll: 60\n",
        "2:9: daemon.poll: \"60\" is not a duration (examples: 30s, 5m, 1h 30m; a day is 24h)",
    ),
    (
        "daemon:\n  poll: 10ms\n",
        "2:9: daemon.poll: \"10ms\" is not between 100ms and 720h",
    ),
    (
        "daemon:\n  verify: \"off\"\n",
        "2:11: daemon.verify: \"off\" is not a duration (examples: 30s, 5m, 1h 30m; a day is 24h)",
    ),
    (
        "daemon:\n  threads: 0\n",
        "2:12: daemon.threads: \"0\" is not a number from 1 to 64",
    ),
    (
        "daemon:\n  threads: 65\n",
        "2:12: daemon.threads: \"65\" is not a number from 1 to 64",
    ),
    (
        "daemon:\n  notify: {url: ftp://x}\n",
        "2:17: daemon.notify.url: is no https address",
    ),
    (
        "daemon:\n  notify: {url: \"https:///hush\"}\n",
        "2:17: daemon.notify.url: is no https address",
    ),
    (
        "daemon:\n  notify: {url: \"http://hooks.example/hush\"}\n",
        "2:17: daemon.notify.url: would be told in plain text: use https",
    ),
    (
        "daemon:\n  notify: {url: \"https://169.254.169.254/x\"}\n",
        "2:17: daemon.notify.url: is the address of a metadata service",
    ),
    (
        "daemon:\n  notify: {url: https://h.example, on: [xyz]}\n",
        "2:41: daemon.notify.on[0]: \"xyz\" is none of promoted, conflict, drift, refused, held, torn, override",
    ),
    (
        "daemon:\n  notify: {url: https://h.example, template: '{what}'}\n",
        "2:46: daemon.notify.template: has {what}, which is none of id, event, time, route, source, destination, digest, previous_digest, reasons, actor, reason, summary",
    ),
    (
        "daemon:\n  notify:\n    - url: https://h.example\n    - url: https://h.example\n",
        "4:7: daemon.notify[1]: is there twice: the same address with the same `on`",
    ),
    (
        "daemon:\n  grace: 2h\n",
        "2:10: daemon.grace: \"2h\" is not between 0s and 1h",
    ),
    (
        "daemon:\n  state: ${NOPE}/x\n",
        "2:10: daemon.state: NOPE is not set in the environment (a default is written ${NOPE:-…})",
    ),
    (
        "daemon:\n  state: ${NOPE:?say where}\n",
        "2:10: daemon.state: NOPE is not set in the environment: say where",
    ),
    (
        "daemon:\n  state: ${PLACE\n",
        "2:10: daemon.state: a ${ without its } (a plain ${ is written $${)",
    ),
    (
        "daemon:\n  state: [a]\n  poll: {}\n",
        "2:10: daemon.state: expected one value, found a list\n3:9: daemon.poll: expected one value, found a mapping",
    ),
    (
        "daemon:\n  secret_file: absent\n",
        "2:16: daemon.secret_file: cannot read /nowhere/absent: No such file or directory (os error 2)",
    ),
    (
        "daemon:\n  tls: {cert_file: absent, key_file: absent}\n",
        "2:8: daemon.tls: cannot read /nowhere/absent: No such file or directory (os error 2)",
    ),
    (
        "daemon:\n  tls: {cert_file: \"${SECRETS}/password\", key_file: \"${SECRETS}/key.pem\"}\n",
        "2:8: daemon.tls: SECRETS/password holds no certificate in PEM",
    ),
    (
        "daemon:\n  tls: {cert_file: a}\n",
        "2:8: daemon.tls.key_file: is missing: its private key, in PEM",
    ),
    (
        "daemon:\n  tokens: {a: {may: look}}\n",
        "2:15: daemon.tokens.a.file: is missing: name the file that holds the token (or say oidc)",
    ),
    (
        "daemon:\n  tokens: {a: {file: \"${SECRETS}/password\", may: [look, fly]}}\n",
        "2:50: daemon.tokens.a.may: \"fly\" is no right (there are look, hold, approve, deny, accept, rollback, override, or decide for hold, approve, deny, accept and rollback)",
    ),
    (
        "daemon:\n  tokens: {a: {may: look, oidc: {issuer: \"http://i.example\", audience: b, claims: {}}}}\n",
        "2:42: daemon.tokens.a.oidc.issuer: is not https://host[/path] (http only for this machine)\n2:83: daemon.tokens.a.oidc.claims: is empty: at least one: every account of a public issuer gets tokens for every audience",
    ),
    (
        "daemon:\n  tokens: {a: {may: look, file: \"${SECRETS}/password\", oidc: {issuer: \"https://i.example\", audience: b, claims: {c: d}}}}\n",
        "2:62: daemon.tokens.a.oidc: is a second way: keep one of file and oidc",
    ),
    (
        "daemon:\n  tokens:\n    a: {may: look, oidc: &o {issuer: \"https://i.example\", audience: b, claims: {c: d}}}\n    e: {may: hold, oidc: *o}\n",
        "4:8: daemon.tokens.e: has the same issuer, audience and claims as a",
    ),
    (
        "daemon:\n  poll: 1s\n  poll: 2s\n",
        "3:3: daemon.poll: is written twice; the first is at 2:3",
    ),
    (
        "daemon: {}\ndaemon: {}\n",
        "2:1: daemon: is written twice; the first is at 1:1",
    ),
    (
        "demon: {}\n",
        "1:1: demon: unknown key; did you mean \"daemon\"?",
    ),
];

/// Keys of a registry; the first stands at 4:5.
const REGISTRY: &[(&str, &str)] = &[
    (
        "url: s.example\n",
        "4:10: registries.s.url: is not https://host[:port], http://host[:port] or layout:/path",
    ),
    (
        "url: ftp://s.example\n",
        "4:10: registries.s.url: is not https://host[:port], http://host[:port] or layout:/path",
    ),
    (
        "url: https://s.example/team\n",
        "4:10: registries.s.url: holds a path: the repository belongs into the routes",
    ),
    (
        "url: https://user:hunter2@s.example\n",
        "4:10: registries.s.url: holds a user name or password: use username and password_file",
    ),
    (
        "url: https://s.example?x=1\n",
        "4:10: registries.s.url: holds a query or a fragment: only scheme, host and port belong here",
    ),
    (
        "url: \"layout:\"\n",
        "4:10: registries.s.url: names no folder (layout:/path)",
    ),
    (
        "url:\n",
        "4:5: registries.s.url: has no value: https://host, http://host or layout:/path",
    ),
    (
        "urls: https://s.example\n",
        "4:5: registries.s.url: is missing: https://host, http://host or layout:/path\n4:5: registries.s.urls: unknown key; did you mean \"url\"?",
    ),
    (
        "url: https://s.example\n    password: hunter2\n",
        "5:5: registries.s.password: unknown key; did you mean \"password_file\"?",
    ),
    (
        "url: https://s.example\n    auth: basci\n",
        "5:11: registries.s.auth: \"basci\" is none of ecr, docker-config, basic, bearer, anonymous; did you mean \"basic\"?",
    ),
    (
        "url: https://s.example\n    auth: basic\n",
        "4:5: registries.s.username: is missing: auth: basic needs it\n4:5: registries.s.password_file: is missing: auth: basic needs it",
    ),
    (
        "url: https://s.example\n    username: me\n",
        "4:5: registries.s.password_file: is missing: auth: basic needs it",
    ),
    (
        "url: https://s.example\n    auth: bearer\n",
        "4:5: registries.s.token_file: is missing: auth: bearer needs it",
    ),
    (
        "url: https://s.example\n    auth: anonymous\n    token_file: t\n",
        "6:17: registries.s.token_file: only means something with auth: bearer",
    ),
    (
        "url: https://s.example\n    username: me\n    token_file: t\n",
        "4:5: registries.s.auth: is missing: both a user name or password and a token are given",
    ),
    (
        "url: https://s.example\n    username: me\n    password_file: ${SECRETS}/absent\n",
        "6:20: registries.s.password_file: cannot read SECRETS/absent: No such file or directory (os error 2)",
    ),
    (
        "url: https://s.example\n    username: me\n    password_file: ${SECRETS}/empty\n",
        "6:20: registries.s.password_file: SECRETS/empty is empty",
    ),
    (
        "url: https://s.example\n    username: me\n    password_file: ${SECRETS}/newline\n",
        "6:20: registries.s.password_file: the file holds nothing but the end of a line",
    ),
    (
        "url: https://s.example\n    username: me\n    password_file: ${SECRETS}/lines\n",
        "6:20: registries.s.password_file: the file holds more than one line, or control characters",
    ),
    (
        "url: https://s.example\n    username: me\n    password_file: ${SECRETS}/long\n",
        "6:20: registries.s.password_file: SECRETS/long is longer than 65536 bytes",
    ),
    (
        "url: https://s.example\n    username: a:b\n    password_file: ${SECRETS}/password\n",
        "5:15: registries.s.username: holds a colon or a control character, which no user name can",
    ),
    (
        "url: http://s.example\n    username: me\n    password_file: ${SECRETS}/password\n",
        "4:10: registries.s.url: would carry credentials in plain text: use https, or say insecure: true",
    ),
    (
        "url: https://s.example\n    region: eu-west-1\n",
        "5:13: registries.s.region: only means something with auth: ecr",
    ),
    (
        "url: https://s.example\n    auth: ecr\n",
        "4:5: registries.s.region: is missing: the host does not tell it",
    ),
    (
        "url: https://123456789012.dkr.ecr.eu-west-1.amazonaws.com\n    external_id: x\n    role_arn:\n    account: 12345\n    region: Europe\n    identity: me\n    ecr_endpoint: there\n",
        "5:18: registries.s.external_id: only means something with role_arn\n7:14: registries.s.account: \"12345\" is not an account (12 digits)\n8:13: registries.s.region: \"Europe\" is not a region (example: eu-west-1)\n9:15: registries.s.identity: \"me\" is not an ARN (example: arn:aws:iam::123456789012:role/promoter)\n10:19: registries.s.ecr_endpoint: is not https://host[:port] or http://host[:port]",
    ),
    (
        "url: https://123456789012.dkr.ecr.eu-west-1.amazonaws.com\n    region: us-east-1\n    account: 210987654321\n",
        "5:13: registries.s.region: is us-east-1, but the registry at `url` is in eu-west-1, and takes no tokens of other regions\n6:14: registries.s.account: is 210987654321, but the registry at `url` belongs to account 123456789012",
    ),
    (
        "url: https://public.ecr.aws\n    auth: ecr\n",
        "5:11: registries.s.auth: is for private registries: the public one is read by anybody, and written with the Docker config (aws ecr-public get-login-password | docker login)",
    ),
    (
        "url: https://public.ecr.aws\n    aws_profile: me\n",
        "5:18: registries.s.aws_profile: only means something with auth: ecr",
    ),
    (
        "url: https://s.example\n    ca_file: ${SECRETS}/password\n",
        "5:14: registries.s.ca_file: the file holds no PEM block \"CERTIFICATE\"",
    ),
    (
        "url: https://s.example\n    client_cert_file: ${SECRETS}/cert.pem\n",
        "4:5: registries.s.client_key_file: is missing: client_cert_file needs it",
    ),
    (
        "url: https://s.example\n    concurrency: 0\n    requests_per_second: fast\n    bandwidth: 5 lightyears\n",
        "5:18: registries.s.concurrency: \"0\" is not a number from 1 to 256\n6:26: registries.s.requests_per_second: \"fast\" is not a number from 0.01 to 100000\n7:16: registries.s.bandwidth: \"5 lightyears\" is not an amount of bytes (examples: 50MiB, 1.5GB, 52428800)",
    ),
    (
        "url: https://s.example\n    bandwidth:\n    - {days: [mon-fry, sat], from: '8:00', to: '24:01', rate: fast, until: x}\n    - {from: '08:00', rate: 1}\n    - {from: '08:00', to: '08:00', rate: off}\n    - {days: []}\n",
        "6:15: registries.s.bandwidth[0].days[0]: \"mon-fry\" is no day and no stretch of days (examples: sat, mon-fri)\n6:36: registries.s.bandwidth[0].from: \"8:00\" is not a time of day (example: 08:00)\n6:48: registries.s.bandwidth[0].to: \"24:01\" is not a time of day (example: 08:00)\n6:63: registries.s.bandwidth[0].rate: \"fast\" is not an amount of bytes (examples: 50MiB, 1.5GB, 52428800)\n6:69: registries.s.bandwidth[0].until: unknown key; known here: days, from, to, rate\n7:7: registries.s.bandwidth[1].to: is missing: from needs it\n8:27: registries.s.bandwidth[2].to: is the time at which the window begins; leave both away for the whole day\n9:7: registries.s.bandwidth[3].rate: is missing: bytes in a second (50MiB), or off for no limit\n9:14: registries.s.bandwidth[3].days: is empty; leave it away for all days",
    ),
    (
        "url: https://s.example\n    bandwidth:\n    - {rate: 1MiB}\n    - {days: sun, rate: 2MiB}\n",
        "7:7: registries.s.bandwidth[1]: never holds: the window before it always does, and the first that holds counts",
    ),
    (
        "url: https://s.example\n    bandwidth: []\n",
        "5:16: registries.s.bandwidth: has 0 windows: give 1 to 50",
    ),
    (
        "url: https://s.example\n    kind: habor\n",
        "5:11: registries.s.kind: \"habor\" is none of distribution2, distribution3, ecr, ecr-public, dockerhub, ghcr, gar, acr, quay, harbor, artifactory, nexus, zot, gitlab, olareg, generic; did you mean \"harbor\"?",
    ),
    (
        "url: https://s.example\n    insecure: yes\n    token_realms: login.example\n",
        "5:15: registries.s.insecure: \"yes\" is none of true, false\n6:19: registries.s.token_realms: expected a list, found one value",
    ),
    (
        "url: https://s.example\n    token_realms: [https://login.example]\n",
        "5:20: registries.s.token_realms[0]: \"https://login.example\" is not a registry host (host or host:port)",
    ),
    (
        "url: layout:/x\n    auth: anonymous\n    region: eu-west-1\n",
        "5:11: registries.s.auth: means nothing for a folder of layouts\n6:13: registries.s.region: means nothing for a folder of layouts",
    ),
    (
        "url: https://s.example\n  a/b: {url: https://a.example}\n",
        "5:3: registries.a/b: is not a name for a registry (1 to 64 letters, digits, _ . -, starting with a letter or digit)",
    ),
];

/// Routes; the first stands at 7:3.
/// A receiver; its keys stand at 2:7.
const RECEIVER: &[(&str, &str)] = &[
    (
        "kind: harbour, registry: s, unauthenticated: true",
        "2:13: receivers.r.kind: \"harbour\" is none of acr, artifactory, distribution, dockerhub, ecr, gar, generic, ghcr, gitea, harbor, nexus, quay, zot; did you mean \"harbor\"?",
    ),
    (
        "kind: harbor, registry: q, unauthenticated: true",
        "2:31: receivers.r.registry: there is no registry \"q\"",
    ),
    (
        "kind: harbor, registry: s",
        "2:6: receivers.r.secret_file: is missing: without it anyone may ask for looks (or say oidc, or unauthenticated: true)",
    ),
    (
        "kind: harbor, registry: s, secret_file: absent",
        "2:47: receivers.r.secret_file: cannot read /nowhere/absent: No such file or directory (os error 2)",
    ),
    (
        "kind: harbor, registry: s, secret_file: \"${SECRETS}/newline\"",
        "2:47: receivers.r.secret_file: the secret file is empty; put a long random word into it",
    ),
    (
        "kind: harbor, registry: s, secret_file: \"${SECRETS}/three\"",
        "2:47: receivers.r.secret_file: the secret file has more than 2 lines; keep the new secret and the one before it",
    ),
    (
        "kind: harbor, registry: s, secret_file: \"${SECRETS}/lines\", unauthenticated: true",
        "2:84: receivers.r.unauthenticated: is a second way: keep one of secret_file, oidc and unauthenticated",
    ),
    (
        "kind: gar, registry: s, oidc: {issuer: \"http://i.example\", audience: a, claims: {}}",
        "2:46: receivers.r.oidc.issuer: is not https://host[/path] (http only for this machine)\n2:87: receivers.r.oidc.claims: is empty: at least one: every account of a public issuer gets tokens for every audience",
    ),
    (
        "kind: harbor, registry: s, unauthenticated: true, limit: 0",
        "2:64: receivers.r.limit: \"0\" is not a number of notifications in a second (1 to 100000)",
    ),
    (
        "kind: harbor, registry: s, unauthenticated: true, rewrite: {a/b: c}",
        "2:67: receivers.r.rewrite.a/b: is not the first part of a repository's name",
    ),
    (
        "registry: s, unauthenticated: true, rate: 1",
        "2:6: receivers.r.kind: is missing: say what sends: distribution, harbor, ecr, …\n2:43: receivers.r.rate: unknown key; known here: kind, limit, registry, rewrite, secret_file, oidc, unauthenticated",
    ),
];

const ROUTES: &[(&str, &str)] = &[
    (
        "  - from: s/app\n    to: p/app\n",
        "7:5: routes[0].tags.include: is missing: say which tags this route takes, here or in defaults",
    ),
    (
        "  - from: s/app\n    to: p/app\n    tags: {includ: [latest]}\n",
        "7:5: routes[0].tags.include: is missing: say which tags this route takes, here or in defaults\n9:12: routes[0].tags.includ: unknown key; did you mean \"include\"?",
    ),
    (
        "  - from: s/app\n    to: p/app\n    tags: {include: []}\n",
        "9:21: routes[0].tags.include: is empty: without a tag to include the route carries nothing (\"*\" includes every tag)",
    ),
    (
        "  - from: s/app\n    to: p/app\n    tags:\n      include: [\"[a-z]\", \".*\", \"/(/\", \"semver:>=one\", \"semver:>=1 <\"]\n",
        "10:17: routes[0].tags.include[0]: \"[a-z]\" can match no tag (a tag has 1 to 128 of letters, digits, _ . - and does not start with . or -; a regular expression is written /between slashes/, a range of versions semver:>=1.2)\n10:26: routes[0].tags.include[1]: \".*\" can match no tag (a tag has 1 to 128 of letters, digits, _ . - and does not start with . or -; a regular expression is written /between slashes/, a range of versions semver:>=1.2)\n10:32: routes[0].tags.include[2]: \"/(/\" is not a regular expression: unclosed group\n10:39: routes[0].tags.include[3]: \"semver:>=one\" is not a range of versions: unexpected character 'o' while parsing major version number (examples: semver:>=1.2 <3, semver:1.x, semver:^2.1 || ^3)\n10:55: routes[0].tags.include[4]: \"semver:>=1 <\" is not a range of versions: nothing follows < (examples: semver:>=1.2 <3, semver:1.x, semver:^2.1 || ^3)",
    ),
    (
        "  - from: s/app\n    to: p/app\n    backup: previous\n    mode: look\n    platform: linux\n    tags: {include: x, forward_only: \"[\"}\n",
        "9:13: routes[0].backup: \"previous\" is no name for a backup tag: it has {tag} once and more beside it, as in \"{tag}.previous\"\n10:11: routes[0].mode: \"look\" is none of promote, observe\n11:15: routes[0].platform: \"linux\" is no platform: os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7\n12:38: routes[0].tags.forward_only: \"[\" can match no tag (a tag has 1 to 128 of letters, digits, _ . - and does not start with . or -; a regular expression is written /between slashes/, a range of versions semver:>=1.2)",
    ),
    (
        "  - from: s/app\n    to: p/app\n    platform: linux/ARM64\n    tags: {include: x}\n",
        "9:15: routes[0].platform: \"linux/ARM64\" is no platform: their names are in lower case; write linux/arm64",
    ),
    (
        "  - from: s/app\n    to: p/app\n    backup: \"{tag}.previous\"\n    tags: {include: \"*\"}\n",
        "7:5: routes[0].backup: latest.previous would be the backup of latest, and a tag that the rules choose: exclude it (`tags: {exclude: [\"*.previous\"]}`)",
    ),
    (
        "  - from: s/app\n    to: p/app\n    backup: \"{tag}-old\"\n    tags: {include: \"rel-*\", moving: \"rel-*\"}\n",
        "7:5: routes[0].backup: rel-x-old would be the backup of rel-x, and a tag that the rules choose: exclude it (`tags: {exclude: [\"*-old\"]}`)",
    ),
    (
        "  - from: s/app\n    to: p/app\n    tags: {include: x, at_least: few}\n",
        "9:34: routes[0].tags.at_least: \"few\" is not a number of tags",
    ),
    (
        "  - from: s/app\n    to: p/app\n    tags: {include: x, newest: 0, exclude: {a: b}}\n",
        "9:32: routes[0].tags.newest: \"0\" is not a number of versions, 1 or more\n9:44: routes[0].tags.exclude: expected one value, found a mapping",
    ),
    (
        "  - from: s/app\n    tags: {include: x}\n",
        "7:5: routes[0].to: is missing: registry/repository, or a list of such",
    ),
    (
        "  - to: p/app\n    tags: {include: x}\n",
        "7:5: routes[0].from: is missing: registry/repository",
    ),
    (
        "  - from: app\n    to: p/app\n    tags: {include: x}\n",
        "7:11: routes[0].from: \"app\" names no repository (expected the registry's name, a slash, the repository)",
    ),
    (
        "  - from: s/App\n    to: p/app\n    tags: {include: x}\n",
        "7:11: routes[0].from: \"s/App\" fits no repository name (lower-case letters, digits, and single . _ __ - between them, in parts joined by /)",
    ),
    (
        "  - from: s/***\n    to: p/app\n    tags: {include: x}\n",
        "7:11: routes[0].from: \"s/***\" has wildcards side by side (* captures within one part, ** across parts)",
    ),
    (
        "  - from: stage/app\n    to: prod/app\n    tags: {include: x}\n",
        "7:11: routes[0].from: there is no registry \"stage\" (`registries` has: p, r, s, same)\n8:9: routes[0].to: there is no registry \"prod\" (`registries` has: p, r, s, same)",
    ),
    (
        "  - from: s/app-*\n    to: p/{2}\n    tags: {include: x}\n",
        "8:9: routes[0].to: there is no capture {2}: `from` has one wildcard",
    ),
    (
        "  - from: s/app\n    to: [\"p/{1}\", \"p/x-{1\", p/*, p/a//b, p]\n    tags: {include: x}\n",
        "8:10: routes[0].to[0]: there is no capture {1}: `from` has no wildcard\n8:19: routes[0].to[1]: \"p/x-{1\" has a brace that is no capture (captures are written {1}, {2}, …)\n8:29: routes[0].to[2]: \"p/*\" has a wildcard (a destination uses what `from` captured: {1}, {2}, …)\n8:34: routes[0].to[3]: \"p/a//b\" fits no repository name (lower-case letters, digits, and single . _ __ - between them, in parts joined by /)\n8:42: routes[0].to[4]: \"p\" names no repository (expected the registry's name, a slash, the repository)",
    ),
    (
        "  - from: s/app\n    to: []\n    tags: {include: x}\n",
        "8:9: routes[0].to: is empty: name at least one destination",
    ),
    (
        "  - from: s/app\n    to: p/app\n    tags: {include: x}\n    existing: kep\n    drift: adopt\n",
        "10:15: routes[0].existing: \"kep\" is none of keep, adopt; did you mean \"keep\"?\n11:12: routes[0].drift: \"adopt\" is none of keep, restore",
    ),
    (
        "  - name: two words\n    from: s/app\n    to: p/app\n    tags: {include: x}\n",
        "7:11: routes[0].name: \"two words\" is not a name for a route (1 to 128 characters without spaces)",
    ),
    (
        "  - {name: one, from: s/a, to: p/a, tags: {include: x}}\n  - {name: one, from: s/b, to: p/b, tags: {include: x}}\n",
        "8:12: routes[1].name: \"one\" already is the name of routes[0]",
    ),
    (
        "  - {name: one, from: s/a, to: p/a, tags: {include: x}}\n  - {name: two, from: p/a, to: s/a, tags: {include: x}}\n",
        "7:32: routes[0].to: is read by routes[1] (\"two\"), which leads back to this route: copies would be copied again\n8:32: routes[1].to: is read by routes[0] (\"one\"), which leads back to this route: copies would be copied again",
    ),
    (
        "  - {from: s/a, to: p/a, tags: {include: x}}\n  - {from: s/b, to: p/a, tags: {include: x}}\n",
        "8:21: routes[1].to: already is a destination of routes[0] (\"a\")",
    ),
    (
        "  - {from: s/a, to: p/a, tags: {include: x}}\n  - {from: s/b, to: same/a, tags: {include: x}}\n",
        "8:21: routes[1].to: already is a destination of routes[0] (\"a\")",
    ),
    (
        "  - {from: s/a, to: [p/a, p/b, p/a], tags: {include: x}}\n",
        "7:32: routes[0].to[2]: is named twice in this route",
    ),
    (
        "  - {from: s/**, to: \"s/mirror/{1}\", tags: {include: x}}\n",
        "7:22: routes[0].to: is read by routes[0] (\"**\"), which leads back to this route: copies would be copied again",
    ),
    (
        "  - {name: one, from: s/a, to: p/a, tags: {include: x}}\n  - {name: two, from: p/a, to: same/b, tags: {include: x}}\n  - {name: three, from: same/b, to: s/a, tags: {include: x}}\n",
        "7:32: routes[0].to: is read by routes[1] (\"two\"), which leads back to this route: copies would be copied again\n8:32: routes[1].to: is read by routes[2] (\"three\"), which leads back to this route: copies would be copied again\n9:37: routes[2].to: is read by routes[0] (\"one\"), which leads back to this route: copies would be copied again",
    ),
    (
        "  - {from: s/*, to: \"p/{1}\", tags: {include: x}}\n  - {from: s/web, to: p/x/web, tags: {include: x}}\n",
        "8:12: routes[1].from: never matches: routes[0] (\"*\") already claims this repository; put this route first",
    ),
    (
        "  - {from: s/*, to: \"p/{1}\", tags: {include: x}}\n  - {name: again, from: s/*, to: \"r/{1}\", tags: {include: x}}\n",
        "8:25: routes[1].from: never matches: routes[0] (\"*\") already claims this repository; let one route have both destinations",
    ),
    (
        "  - just text\n",
        "7:5: routes[0]: expected a mapping, found one value",
    ),
    (
        "  - {from: s/a, to: p/a, tags: {include: x}, frm: y}\ndefaults: {name: x, tag: {}}\n",
        "7:46: routes[0].frm: unknown key; did you mean \"from\"?\n8:18: defaults.name: belongs to one route and has no default\n8:21: defaults.tag: unknown key; did you mean \"tags\"?",
    ),
    (
        "  - {from: s/a, to: p/a, tags: {include: \"${TAG}\"}}\n",
        "7:42: routes[0].tags.include: TAG is not set in the environment (a default is written ${TAG:-…})",
    ),
    (
        "  - {from: s/a, to: p/a, tags: {include: \"${TAG+x}\"}}\n",
        "7:42: routes[0].tags.include: ${TAG…} is none of ${TAG}, ${TAG:-default}, ${TAG:?message}",
    ),
];

/// Keys of a queue `q`, from line 7 and column 5 on.
const QUEUES: &[(&str, &str)] = &[
    (
        "registry: s\n",
        "7:5: queues.q.sqs: is missing: the URL of the queue",
    ),
    (
        "sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n",
        "7:5: queues.q.registry: is missing: the registry that its events are about",
    ),
    (
        "sqs: ecr-pushes\n    registry: s\n",
        "7:10: queues.q.sqs: is not the URL of a queue (https://sqs.REGION.amazonaws.com/ACCOUNT/NAME)",
    ),
    (
        "sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n    registry: z\n",
        "8:15: queues.q.registry: there is no registry \"z\"",
    ),
    (
        "sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n    registry: folder\n",
        "8:15: queues.q.registry: is a folder of layouts, which sends no events",
    ),
    (
        "sqs: http://localhost:4566/000000000000/q\n    registry: s\n",
        "7:5: queues.q.region: is missing: the URL does not tell it",
    ),
    (
        "sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n    registry: s\n    external_id: x\n    rgion: y\n",
        "9:18: queues.q.external_id: only means something with role_arn\n10:5: queues.q.rgion: unknown key; did you mean \"region\"?",
    ),
    (
        "sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n    registry: s\n    endpoint: nowhere\n    region: Ireland\n    role_arn: x\n",
        "9:15: queues.q.endpoint: is not https://host[:port] or http://host[:port]\n10:13: queues.q.region: \"Ireland\" is not a region (example: eu-west-1)\n11:15: queues.q.role_arn: \"x\" is not an ARN (example: arn:aws:iam::123456789012:role/promoter)",
    ),
    (
        "sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n    registry: s\n  r:\n    sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n    registry: p\n",
        "10:5: queues.r.sqs: is the URL of the queue q, too",
    ),
    (
        "sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/q\n    registry: s\n  a b:\n    sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/r\n    registry: p\n",
        "9:3: queues.a b: is not a name for a queue (1 to 64 letters, digits, _ . -, starting with a letter or digit)",
    ),
];

fn queue_file(keys: &str) -> String {
    let registries = "registries:\n  p: {url: https://p.example}\n  s: {url: https://s.example}\n  folder: {url: layout:/x}\n";
    let routes = "routes:\n  - {from: s/app, to: p/app, tags: {include: latest}}\n";
    format!("{registries}queues:\n  q:\n    {keys}{routes}")
}

fn routes_file(routes: &str) -> String {
    let registries = ["s", "p", "r"]
        .map(|name| format!("  {name}: {{url: https://{name}.example}}\n"))
        .concat();
    format!("registries:\n{registries}  same: {{url: 'https://P.example:443'}}\nroutes:\n{routes}")
}

fn assert_complaints(table: &[(&str, &str)], file: impl Fn(&str) -> String) {
    for (text, expected) in table {
        assert_eq!(complaints(&file(text)), *expected, "{text}");
    }
}

#[test]
fn whole_files_that_are_wrong_are_refused_with_place_and_reason() {
    assert_complaints(WHOLE, |text| text.to_owned());
}

#[test]
fn daemon_settings_that_are_wrong_are_refused_with_place_and_reason() {
    assert_complaints(DAEMON, |text| format!("{text}{REST}"));
}

#[test]
fn receivers_that_are_wrong_are_refused_with_place_and_reason() {
    assert_complaints(RECEIVER, |keys| {
        format!("receivers:\n  r: {{{keys}}}\n{REST}")
    });
}

#[test]
fn registries_that_are_wrong_are_refused_with_place_and_reason() {
    assert_complaints(REGISTRY, registry_file);
}

#[test]
fn queues_that_are_wrong_are_refused_with_place_and_reason() {
    assert_complaints(QUEUES, queue_file);
}

#[test]
fn routes_that_are_wrong_are_refused_with_place_and_reason() {
    assert_complaints(ROUTES, routes_file);
}

#[test]
fn problems_are_told_all_at_once_up_to_a_bound() {
    let routes = "  - nonsense\n".repeat(70);
    let text = complaints(&routes_file(&routes));
    assert_eq!(text.lines().count(), 51, "{text}");
    assert!(text.ends_with("\nand 20 more"), "{text}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        Config::load(&path, &|_| None)
            .unwrap_err()
            .to_string()
            .replace(&folder.path().display().to_string(), "F")
    };
    assert_eq!(
        load("latin.yaml", b"a: \xff"),
        "F/latin.yaml: the config file is not UTF-8 text"
    );
    assert_eq!(
        load("big.yaml", &vec![b'#'; (1 << 20) + 1]),
        "F/big.yaml: the config file is longer than 1 MiB"
    );
    let absent = Config::load(Path::new("/nowhere/b.yaml"), &|_| None).unwrap_err();
    assert_eq!(
        absent.to_string(),
        "/nowhere/b.yaml: cannot read the config file: No such file or directory (os error 2); name another with -c FILE or BLOBFERRY_CONFIG"
    );
}

/// `check` hung for ever on a `ca_file` that was a pipe without a writer.
#[test]
fn a_pipe_or_a_device_where_a_file_belongs_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let pipe = pipe.display().to_string();
    let of = |key: &str, path: &str| {
        complaints(&registry_file(&format!(
            "url: https://s.example\n    username: u\n    {key}: {path}\n"
        )))
    };
    for key in [
        "ca_file",
        "password_file",
        "client_cert_file",
        "client_key_file",
    ] {
        assert!(
            of(key, &pipe).contains(&format!("{key}: cannot read {pipe}: it is a pipe")),
            "{}",
            of(key, &pipe)
        );
    }
    assert!(of("password_file", "/dev/zero").contains("cannot read /dev/zero: it is a device"));
    let secret = complaints(&format!("daemon:\n  secret_file: {pipe}\n{REST}"));
    assert!(secret.contains("it is a pipe"), "{secret}");
}

#[test]
fn passwords_and_control_characters_of_values_are_not_repeated() {
    let text = complaints(&registry_file(
        "url: https://s.example\n    token_realms: [\"joe:hush@auth.example\"]\n    kind: \"\\e[2J\"\n",
    ));
    assert!(
        !text.contains("hush") && text.contains("[hidden]@auth.example"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}') && text.contains("kind"), "{text}");
}

#[test]
fn a_set_has_routes_that_can_move_together() {
    let routes = "registries:\n  s: {url: \"https://s.example\"}\n  p: {url: \"https://p.example\"}\nroutes:\n  \
                  - {name: api, from: s/api, to: p/api, tags: {include: [latest, \"v*\"]}}\n  \
                  - {name: web, from: s/web, to: p/web, tags: {include: [\"*\"]}}\n  \
                  - {name: wild, from: \"s/x/*\", to: \"p/x/{1}\", tags: {include: [\"*\"]}}\n  \
                  - {name: loose, from: s/loose, to: p/loose, tags: {include: [latest]}}\n  \
                  - {name: seen, from: s/seen, to: p/seen, mode: observe, tags: {include: [\"*\"]}}\n";
    for (sets, expected) in [
        ("{shop: {routes: [api, web]}}", ""),
        (
            "{shop: {}}",
            "sets.shop.routes: is missing: name the routes that move together",
        ),
        (
            "{shop: {routes: [api]}}",
            "sets.shop.routes: names fewer than two routes: what is to move together?",
        ),
        (
            "{shop: {routes: [api, wep]}}",
            "sets.shop.routes[1]: there is no route \"wep\"; did you mean \"web\"?",
        ),
        (
            "{shop: {routes: [api, wild]}}",
            "sets.shop.routes[1]: route wild has wildcards in `from`: a member of a set is one repository",
        ),
        (
            "{shop: {routes: [api, seen]}}",
            "sets.shop.routes[1]: route seen only observes (`mode: observe`): the set would wait for it for ever",
        ),
        (
            "{shop: {routes: [api, loose]}}",
            "sets.shop.routes[1]: route loose takes no fixed tag: a moving tag of a set only moves to what a fixed tag of each member names",
        ),
        (
            "{shop: {routes: [api, web]}, more: {routes: [web, api]}}",
            "sets.more.routes[0]: route web is in the set shop already: a route belongs to one set",
        ),
        (
            "{shop: {routes: [api, api]}}",
            "sets.shop.routes[1]: route api is in the set shop already: a route belongs to one set",
        ),
        (
            "{\"a:b\": {routes: [api, web]}}",
            "sets.a:b: \"a:b\" is not a name for a set (letters, digits and . _ -, at most 64)",
        ),
        (
            "{shop: {routes: [api, web], order: x}}",
            "sets.shop.order: unknown key; known here: routes",
        ),
    ] {
        let text = format!("{routes}sets: {sets}\n");
        let config = Config::parse(&text, Path::new("/etc/b.yaml"), &|_| Some("/h".into()));
        let complaints = config.err().map(|error| error.to_string());
        let complaints = complaints.unwrap_or_default();
        let is_told = complaints.is_empty() == expected.is_empty() && complaints.contains(expected);
        assert!(is_told, "{sets}: {complaints}");
    }
}
