//! What a request needs to be taken up again by another process.

use std::time::Duration;

use ncn_core::{
    CapabilityScope, InferenceRequest, Message as _, QuorumCertificate, Quote, RequestId, Signed, TaskCapability, TrustRoot,
};
use serde::{Deserialize, Serialize};

use super::{Client, Paid, Quoted};
use crate::ClientError;

/// A request as it is kept before money moves, so that its answer can be fetched, or its payment be taken back, whatever becomes of the
/// process that ordered it. It holds no key, no inputs and no permission to see the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stored {
    /// The client's signed order.
    pub request: Signed<InferenceRequest>,
    /// What was to be paid.
    pub quote: Quote,
    /// The validators' approval of the quote.
    pub preprocessing: QuorumCertificate,
    /// The network that the quote is of.
    pub trust_root: TrustRoot,
    /// True once the payment was seen to be taken. It may have been taken before that, too.
    pub paid: bool,
}

impl Stored {
    /// The request's id.
    pub const fn request_id(&self) -> RequestId {
        self.quote.request_id
    }

    /// Whether its parts belong together: the order's id is the quote's, and the network's validators approved the quote.
    fn check(&self) -> Result<(), String> {
        let Self { request, quote, preprocessing, trust_root, .. } = self;
        trust_root.validate().map_err(|error| format!("trustRoot: {error}"))?;
        let id = request.verify(&trust_root.domain).map_err(|error| format!("request: {error}"))?;
        if id != quote.request_id || request.message.client != quote.client {
            return Err("quote: is for another request".into());
        }
        let committee = quote.committee_of(trust_root).map_err(|error| error.to_string())?;
        let verified = preprocessing.verify(&quote.digest(&trust_root.domain), &committee);
        verified.map_err(|error| format!("preprocessing: {error}"))
    }
}

impl Quoted {
    /// What takes the request up again in another process. Keep it before [`Quoted::pay`].
    pub fn stored(&self) -> Stored {
        Stored {
            request: self.request.clone(),
            quote: self.quote.clone(),
            preprocessing: self.preprocessing.clone(),
            trust_root: self.trust.clone(),
            paid: false,
        }
    }
}

impl Paid {
    /// What takes the request up again in another process.
    pub fn stored(&self) -> Stored {
        Stored { paid: true, ..self.quoted.stored() }
    }
}

impl Client {
    /// Takes a request up that was ordered with this client's key, perhaps by a process that has ended since: [`Paid::finish`] brings its
    /// answer as long as the gateway remembers it, and otherwise says what became of the payment. Nothing is paid by it.
    ///
    /// The receipt is verified against the network that was trusted when the request was quoted: the validators may have changed since.
    ///
    /// # Errors
    /// [`ClientError::Configuration`] when what was stored is another client's, of other contracts than this client's, or damaged.
    pub async fn resume(&self, stored: Stored) -> Result<Paid, ClientError> {
        let refuse = |problem: String| ClientError::Configuration { setting: "stored", problem };
        stored.check().map_err(refuse)?;
        let (client, request_id) = (stored.quote.client, stored.quote.request_id);
        if client != self.signer.address() {
            return Err(refuse(format!("the request is {client}'s: use its key")));
        }
        let domain = stored.trust_root.domain;
        if self.trust(0).await?.current().trust.domain != domain {
            return Err(refuse(format!(
                "the request is of chain {} and contract {}: use that chain",
                domain.chain_id, domain.contract
            )));
        }
        let access = TaskCapability { client, request_id, scope: CapabilityScope::Follow };
        let access = Signed::sign(access, &domain, &*self.signer).await?;
        let Stored { request, quote, preprocessing, trust_root, .. } = stored;
        let (client, trust, submitting) = (self.clone(), trust_root, Duration::ZERO);
        let quoted = Quoted { client, request, access, quote, preprocessing, trust, submitting };
        Ok(Paid { quoted, paying: Duration::ZERO })
    }
}
