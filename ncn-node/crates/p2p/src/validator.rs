//! A validator that is asked over libp2p.

use async_trait::async_trait;
use libp2p::{Multiaddr, PeerId};
use ncn_core::{
    Address, Approval, BatchRequest, CompletionRequest, NodeRecord, PreprocessingRequest, RegistryError, Signed, Subnet, Validator,
};
use ncn_wire::proto::{answer::Answer, question::Question};

use crate::peer::{Peer, peer_of};

/// The way to a validator by its record, whose endpoint names its peer: both are signed by it in one statement.
pub(crate) struct PeerValidator {
    peer: Peer,
    address: Address,
    id: PeerId,
    at: Multiaddr,
}

impl PeerValidator {
    /// None where its record says that it is called otherwise.
    pub(crate) fn of(peer: &Peer, record: &NodeRecord) -> Option<Self> {
        let at: Multiaddr = record.endpoint.parse().ok()?;
        Some(Self { peer: peer.clone(), address: record.node, id: peer_of(&at)?, at })
    }

    async fn ask(&self, question: Question) -> Result<Approval, RegistryError> {
        match self.peer.ask(self.id, vec![self.at.clone()], question).await? {
            Answer::Approval(approval) => {
                approval.try_into().map_err(|error: ncn_wire::WireError| RegistryError::Malformed(error.to_string()))
            }
            _ => Err(RegistryError::Malformed("is no approval".into())),
        }
    }
}

#[async_trait]
impl Validator for PeerValidator {
    fn address(&self) -> Address {
        self.address
    }

    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        self.ask(Question::Preprocessing(request.clone().into())).await
    }

    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        self.ask(Question::Completion(request.clone().into())).await
    }

    async fn settlement(&self, request: &BatchRequest) -> Result<Approval, RegistryError> {
        self.ask(Question::Settlement(request.into())).await
    }

    async fn subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError> {
        self.ask(Question::Subnet(subnet.clone().into())).await
    }
}
