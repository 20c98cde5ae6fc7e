// What becomes of a connection after an answer: found by the fuzz target http-head.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct ConnectionTests {
    private static let health = "GET \(Endpoint.health) HTTP/1.1\r\nHost: x\r\n\r\n"

    /// All that comes until the daemon ends the connection of a client that goes on listening, and the seconds that it takes.
    private static func answers(to text: String, from daemon: DaemonProcess) throws -> (text: String, seconds: Double) {
        let descriptor = try RawHTTP.connect(daemon.socket)
        defer { close(descriptor) }
        RawHTTP.send(Data(text.utf8), to: descriptor)
        let start = ContinuousClock.now
        let text = String(decoding: try RawHTTP.readAll(descriptor), as: UTF8.self)
        return (text, (ContinuousClock.now - start) / .seconds(1))
    }

    // Where only a request could end a connection, these went on: with a whole body that nobody wanted, and with the next request.
    @Test("an answer that says close is the last, and ends the connection", arguments: [
        ("POST \(Endpoint.jobs) HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{", 400),
        ("PATCH \(Endpoint.blob(abc)) HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc", 400),
        ("GET \(Endpoint.jobs) HTTP/1.1\r\nHost: x\r\nOrigin: y\r\n\r\n", 403),
        ("GET \(Endpoint.health) HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", 200),
        ("GET \(Endpoint.health) HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    ])
    func closeIsTheLast(request: String, status: Int) throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let (text, seconds) = try Self.answers(to: Self.health + request + Self.health, from: daemon)
        let statuses = text.components(separatedBy: "HTTP/1.1 ").dropFirst().map { $0.prefix(3) }
        #expect(statuses == ["200", "\(status)"], "\(text)")
        #expect(text.lowercased().contains("connection: close") && seconds < 10)
    }

    @Test("an answer to HEAD has no body")
    func headHasNoBody() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let (text, seconds) = try Self.answers(to: "HEAD \(Endpoint.health) HTTP/1.1\r\nHost: x\r\n\r\n", from: daemon)
        #expect(text.hasPrefix("HTTP/1.1 405 ") && text.hasSuffix("\r\n\r\n") && seconds < 10, "\(text)")
    }
}
