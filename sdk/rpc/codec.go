// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// codec is protobuf's, but for what is Encoded and what encode and decode know.
type codec struct{ encoding.CodecV2 }

var protobuf = codec{encoding.GetCodecV2(encodingproto.Name)}

// Name is of no sort of content: calls say application/grpc, as everybody's do.
func (codec) Name() string { return "" }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(*Encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(e.Wire)}, nil
	}
	if b, ok := encode(v); ok {
		return mem.BufferSlice{b}, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	if decode(b.ReadOnlyData(), m) {
		return nil
	}
	return proto.Unmarshal(b.ReadOnlyData(), m)
}
