// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Encoded is a message that has been encoded before. A server of NewServer sends Wire
// as it is; where nothing is encoded, within a process, it is like Message.
type Encoded struct {
	proto.Message
	Wire []byte // Message as protobuf has it; nobody changes it any more
}

// codec is protobuf's, but for what is Encoded.
type codec struct{ encoding.CodecV2 }

var protobuf = codec{encoding.GetCodecV2(encodingproto.Name)}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(*Encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(e.Wire)}, nil
	}
	return c.CodecV2.Marshal(v)
}
