//! Trust: which certificates are accepted, and the error for the others.

use rcgen::{
    CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs};

use super::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Issuer::self_signed(params, key()).unwrap()
}

fn issued(issuer: &Issuer, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
    params.extended_key_usages = vec![usage];
    let key = key();
    (params.signed_by(&key, issuer).unwrap(), key)
}

/// A server that answers 200 to everything; with `clients` only to holders of a certificate.
async fn serve(issuer: &Issuer, clients: bool) -> Server {
    let (certificate, key) = issued(issuer, ExtendedKeyUsagePurpose::ServerAuth);
    let mut roots = RootCertStore::empty();
    roots.add(issuer.as_ref().der().clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = if clients {
        config.with_client_cert_verifier(verifier)
    } else {
        config.with_no_client_auth()
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = config
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let Ok(mut connection) = acceptor.accept(connection).await else {
                continue;
            };
            let _request = connection.read(&mut [0; 4096]).await;
            let _sent = connection
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await;
            let _closed = connection.shutdown().await;
        }
    });
    Server {
        address,
        asked: Arc::default(),
        task: task.abort_handle(),
    }
}

fn registry(server: &Server, scheme: &str, tls: Tls) -> Result<Registry, Fault> {
    let settings = Settings {
        name: "staging".into(),
        url: format!("{scheme}://{}", server.address).parse().unwrap(),
        credentials: auth::Credentials::Anonymous,
        kind: None,
        tls,
        token_realms: Vec::new(),
        insecure: false,
        deadlines: Deadlines::default(),
    };
    Registry::new(
        settings,
        &Metrics::new(&prometheus::Registry::new()).unwrap(),
    )
}

#[tokio::test]
async fn a_certificate_is_trusted_by_its_authority() {
    let ours = authority();
    let other = authority();
    let server = serve(&ours, false).await;
    let trusting = |issuer: &Issuer| Tls {
        ca_pem: Some(issuer.as_ref().pem().into_bytes()),
        identity_pem: None,
    };
    registry(&server, "https", trusting(&ours))
        .unwrap()
        .ping()
        .await
        .unwrap();
    let fault = registry(&server, "https", trusting(&other))
        .unwrap()
        .ping()
        .await
        .unwrap_err();
    assert_eq!(fault.class(), Class::Rejected);
    assert!(fault.to_string().contains("`ca_file`"), "{fault:?}");
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_gets_ours() {
    let ours = authority();
    let server = serve(&ours, true).await;
    let ca_pem = || Some(ours.as_ref().pem().into_bytes());
    let (certificate, key) = issued(&ours, ExtendedKeyUsagePurpose::ClientAuth);
    let identity = format!("{}{}", certificate.pem(), key.serialize_pem()).into_bytes();
    let known = Tls {
        ca_pem: ca_pem(),
        identity_pem: Some(identity.into()),
    };
    registry(&server, "https", known)
        .unwrap()
        .ping()
        .await
        .unwrap();
    let fault = registry(
        &server,
        "https",
        Tls {
            ca_pem: ca_pem(),
            identity_pem: None,
        },
    )
    .unwrap()
    .ping()
    .await
    .unwrap_err();
    assert_eq!(fault.class(), Class::Rejected, "{fault:?}");
    assert!(
        fault.to_string().contains("`client_cert_file`"),
        "{fault:?}"
    );
}

#[tokio::test]
async fn what_is_no_certificate_is_refused_at_once() {
    let server = Server::start(|_| answer(200, &[], "")).await;
    let nonsense = || Some(b"nonsense".to_vec());
    let ca = registry(
        &server,
        "http",
        Tls {
            ca_pem: nonsense(),
            identity_pem: None,
        },
    )
    .unwrap_err();
    assert!(ca.to_string().contains("`ca_file`"), "{ca:?}");
    let identity = registry(
        &server,
        "http",
        Tls {
            ca_pem: None,
            identity_pem: nonsense().map(Into::into),
        },
    )
    .unwrap_err();
    assert!(
        identity.to_string().contains("`client_key_file`"),
        "{identity:?}"
    );
}

#[tokio::test]
async fn https_to_a_port_without_it_says_so() {
    let server = Server::start(|_| answer(200, &[], "")).await;
    let ours = authority();
    let tls = Tls {
        ca_pem: Some(ours.as_ref().pem().into_bytes()),
        identity_pem: None,
    };
    let fault = registry(&server, "https", tls)
        .unwrap()
        .ping()
        .await
        .unwrap_err();
    assert!(
        fault.to_string().contains("does not speak TLS"),
        "{fault:?}"
    );
}
