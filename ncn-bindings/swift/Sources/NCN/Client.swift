import Foundation
@_exported import NCNCore

/// One token, in its smallest units. Amounts are whole numbers of these, as decimal digits.
public let token: Amount = "1000000000000000000"

extension Client {
    /// A way to `ncn devnet` on this machine, whose keys everybody knows, with payment by signatures.
    public static func devnet(gateway: String = "http://127.0.0.1:50051", key: UInt32 = 0) async throws -> Client {
        let connection = Connection(gateways: [gateway], network: .devnet, key: .devnet(number: key), payment: .relayed, maxPrice: token)
        return try await Client.connect(connection: connection)
    }

    /// What happens to a request, up to its verified answer. It is ordered and paid now. Who ends the loop before the answer, or whose task is cancelled,
    /// cancels the request: what was delivered until then is paid for, and where nothing was, the payment comes back.
    public func events(_ order: Order) -> AsyncThrowingStream<Event, Error> {
        followed { try await self.stream(order: order) }
    }

    /// The same for a conversation, with a model that takes the input `messages`.
    public func conversation(model: String, messages: [Message], parameters: String? = nil) -> AsyncThrowingStream<Event, Error> {
        followed { try await self.chat(model: model, messages: messages, parameters: parameters) }
    }
}

private func followed(_ start: @escaping () async throws -> Running) -> AsyncThrowingStream<Event, Error> {
    AsyncThrowingStream { continuation in
        let following = Task {
            do {
                let running = try await start()
                try await withTaskCancellationHandler {
                    while !Task.isCancelled, let event = try await running.next() {
                        continuation.yield(event)
                    }
                } onCancel: {
                    // `next` does not hear of it, and may wait for long.
                    Task { try? await running.cancel() }
                }
                continuation.finish()
            } catch {
                continuation.finish(throwing: error)
            }
            // `running` has gone by here: a request that has no end yet is cancelled with it.
        }
        continuation.onTermination = { _ in following.cancel() }
    }
}

extension Value {
    /// A tensor of numbers of 32 bits.
    public static func floats(_ numbers: [Float], shape: [UInt64]) -> Value {
        var data = Data(capacity: 4 * numbers.count)
        for number in numbers {
            withUnsafeBytes(of: number.bitPattern.littleEndian) { data.append(contentsOf: $0) }
        }
        return .tensor(dtype: .f32, shape: shape, data: data)
    }

    /// The text, if it is one.
    public var text: String? {
        if case .text(let text) = self { return text }
        return nil
    }
}

extension Event {
    /// The text that a part or an answer has under this name.
    public func text(_ name: String = "text") -> String? {
        switch self {
        case .part(let values): return values[name]?.text
        case .finished(let answer): return answer.output[name]?.text
        case .restarted: return nil
        }
    }
}

extension NcnError {
    /// What kind of error it is: what to do about it.
    public var kind: ErrorKind {
        if case .Failed(let kind, _, _, _) = self { return kind }
        return .internal
    }
}
