use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

/// The most graphics cards that a machine has.
const MAX_CARDS: u8 = 16;

/// What computes: the processor, or a graphics card of NVIDIA's. Written `cpu`, `cuda` (the first card) or `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The graphics card with this number, as CUDA counts them.
    Cuda(u16),
}

/// Why a text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device: `{0}` is none: write cpu, cuda, or cuda:NUMBER")]
pub struct DeviceError(String);

impl Device {
    /// The device files that a worker needs: of every card, since CUDA's numbers need not be the system's.
    pub fn files(self) -> Vec<PathBuf> {
        let cards = (0..MAX_CARDS).map(|number| format!("/dev/nvidia{number}"));
        let common = ["/dev/nvidiactl", "/dev/nvidia-uvm"].map(String::from);
        if self == Self::Cpu { Vec::new() } else { common.into_iter().chain(cards).map(PathBuf::from).collect() }
    }

    /// What a worker has to be able to read to find the card.
    pub fn readable(self) -> Vec<PathBuf> {
        let paths = ["/proc/driver/nvidia", "/sys/bus/pci", "/sys/devices", "/sys/module"];
        if self == Self::Cpu { Vec::new() } else { paths.map(PathBuf::from).into() }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError(text.chars().take(64).collect());
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if number.bytes().all(|digit| digit.is_ascii_digit()) => {
                number.parse().map(Self::Cuda).map_err(|_| wrong())
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_card_needs_device_files() {
        assert!(Device::Cpu.files().is_empty() && Device::Cpu.readable().is_empty());
        assert!(Device::Cuda(0).files().contains(&PathBuf::from("/dev/nvidiactl")));
    }

    #[test]
    fn devices_are_read_and_written() {
        for (text, device) in
            [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:0", Device::Cuda(0)), ("cuda:15", Device::Cuda(15))]
        {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in ["", "CPU", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:+1", "cuda:1:2", "cuda:99999", " cuda"] {
            assert_eq!(text.parse::<Device>(), Err(DeviceError(text.into())), "{text}");
        }
    }
}
