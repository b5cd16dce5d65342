import Foundation
import NCN
import XCTest

/// The scenario of every language, ncn-bindings/scenario.json, at the gateways of NCN_GATEWAYS.
final class ScenarioTests: XCTestCase {
    private typealias JSON = [String: Any]

    private func setting(_ name: String) throws -> String {
        guard let value = ProcessInfo.processInfo.environment[name] else { throw XCTSkip("\(name) is not set") }
        return value
    }

    private func client(_ call: JSON) async throws -> Client {
        let gateways = try JSONSerialization.jsonObject(with: Data(setting("NCN_GATEWAYS").utf8)) as? [String: String]
        let gateway = try XCTUnwrap(gateways?[call["gateway"] as? String ?? "honest"])
        let network = Network.custom(contracts: nil, hash: try setting("NCN_NETWORK"), confirmations: 1)
        let key = Key.secret(secret: try setting("NCN_KEY"))
        return try await Client.connect(
            connection: Connection(gateways: [gateway], network: network, key: key, payment: .relayed, maxPrice: token))
    }

    private func order(_ call: JSON) throws -> Order {
        var inputs: [String: Value] = [:]
        for (name, given) in call["inputs"] as? [String: [String: String]] ?? [:] {
            if let text = given["text"] {
                inputs[name] = .text(text: text)
            } else if let path = given["file"] {
                inputs[name] = .file(mediaType: "image/png", data: try Data(contentsOf: repository(path)))
            }
        }
        let model = try XCTUnwrap(call["model"] as? String)
        let timeout = (call["timeout"] as? Int).map(UInt64.init)
        return Order(model: model, inputs: inputs, maxPrice: call["maxPrice"] as? String, timeout: timeout)
    }

    private func texts(_ answer: Answer) -> JSON {
        ["output": answer.output.compactMapValues { $0.text }, "text": answer.output["text"]?.text as Any, "finish": answer.finish, "cost": answer.cost]
    }

    private func followed(_ events: AsyncThrowingStream<Event, Error>, _ call: JSON) async throws -> JSON {
        var parts: [String] = []
        var restarts = 0
        for try await event in events {
            if case .finished(let answer) = event {
                XCTAssertEqual(event.text(), parts.joined())
                var given = texts(answer)
                given["parts"] = parts.count
                given["restarts"] = restarts
                return given
            }
            if case .restarted = event {
                parts = []
                restarts += 1
            }
            if let part = event.text() { parts.append(part) }
            if parts.count == call["after"] as? Int { return [:] }
        }
        return [:]
    }

    private func perform(_ call: JSON) async throws -> JSON {
        let client = try await client(call)
        switch call["call"] as? String {
        case "connect":
            return [:]
        case "models":
            return ["models": try await client.models().map(\.name).sorted()]
        case "infer":
            return texts(try await client.infer(order: order(call)))
        case "embed":
            let embedding = try await client.embed(model: order(call).model, text: call["text"] as? String ?? "")
            return ["embedding": embedding.map(Double.init)]
        case "chat":
            let said = call["messages"] as? [[String: String]] ?? []
            let messages = said.map { Message(role: $0["role"] ?? "", content: $0["content"] ?? "") }
            return try await followed(client.conversation(model: order(call).model, messages: messages), call)
        default:
            return try await followed(client.events(order(call)), call)
        }
    }

    private func check(_ call: JSON) async throws {
        let name = call["name"] as? String ?? ""
        let fails = call["fails"] as? JSON
        do {
            let given = try await perform(call)
            XCTAssertNil(fails, name)
            for (field, expected) in call["gives"] as? JSON ?? [:] {
                let value = try XCTUnwrap(given[field], "\(name): \(field)")
                if let outputs = expected as? [String: String] {
                    let all = value as? [String: String] ?? [:]
                    for (output, text) in outputs { XCTAssertEqual(all[output], text, name) }
                } else {
                    XCTAssertTrue((value as? NSObject) == (expected as? NSObject), "\(name): \(field): \(value) is not \(expected)")
                }
            }
        } catch let error as NcnError {
            guard case .Failed(let kind, let reason, _, let paid) = error else { return XCTFail(name) }
            XCTAssertEqual("\(kind)", fails?["kind"] as? String, "\(name): \(reason)")
            XCTAssertEqual(paid, fails?["paid"] as? Bool, "\(name): \(reason)")
        }
    }

    func testTheScenario() async throws {
        _ = try setting("NCN_GATEWAYS")
        let json = try Data(contentsOf: repository("ncn-bindings/scenario.json"))
        let scenario = try XCTUnwrap(JSONSerialization.jsonObject(with: json) as? JSON)
        let groups = try XCTUnwrap(scenario["groups"] as? [[JSON]])
        for call in groups.joined() where call["call"] as? String != "verify" {
            try await check(call)
        }
    }
}
