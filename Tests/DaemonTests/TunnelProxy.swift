// An HTTP proxy on loopback that knows CONNECT alone, and connects to one port of this machine whatever it is asked for.
import EdgeTestSupport
import Foundation
import Synchronization

final class TunnelProxy: Sendable {
    let port: Int
    private let descriptor: Int32
    /// Request lines.
    private let lines = Mutex<[String]>([])

    var asked: [String] { lines.withLock { $0 } }

    init(to target: Int) throws {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = Self.loopback(0)
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, size) == 0 && listen(descriptor, 8) == 0 && getsockname(descriptor, $0, &size) == 0
            }
        }
        guard bound else { throw TestFailure("no port for a proxy: \(String(cString: strerror(errno)))") }
        self.descriptor = descriptor
        port = Int(UInt16(bigEndian: address.sin_port))
        Thread.detachNewThread { [self] in
            while true {
                let client = accept(descriptor, nil, nil)
                guard client >= 0 else { return }
                Thread.detachNewThread { self.serve(client, target) }
            }
        }
    }

    func end() {
        shutdown(descriptor, Int32(SHUT_RDWR))
        close(descriptor)
    }

    private func serve(_ client: Int32, _ target: Int) {
        var head: [UInt8] = []
        var byte: UInt8 = 0
        while !head.suffix(4).elementsEqual([13, 10, 13, 10]), read(client, &byte, 1) == 1 { head.append(byte) }
        let line = String(decoding: head, as: UTF8.self).components(separatedBy: "\r\n")[0]
        lines.withLock { $0.append(line) }
        let server = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = Self.loopback(target)
        let isConnected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(server, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
        guard line.hasPrefix("CONNECT "), isConnected else {
            close(client)
            close(server)
            return
        }
        RawHTTP.send(Data("HTTP/1.1 200 OK\r\n\r\n".utf8), to: client)
        Thread.detachNewThread { Self.copy(from: server, to: client) }
        Self.copy(from: client, to: server)
    }

    private static func copy(from source: Int32, to target: Int32) {
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = read(source, &buffer, buffer.count)
            guard count > 0 else { break }
            RawHTTP.send(Data(buffer[..<count]), to: target)
        }
        shutdown(target, Int32(SHUT_WR))
    }

    private static func loopback(_ port: Int) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(port).bigEndian
        address.sin_addr.s_addr = in_addr_t(0x7F00_0001).bigEndian
        return address
    }
}
