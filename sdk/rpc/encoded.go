// SPDX-License-Identifier: Apache-2.0

package rpc

import "google.golang.org/protobuf/proto"

// Encoded is a message that has been encoded before. Servers of NewServer and clients of
// Dial send Wire as it is; where nothing is encoded, within a process, it is like Message.
type Encoded struct {
	proto.Message
	Wire []byte // Message as protobuf has it; nobody changes it any more
}
