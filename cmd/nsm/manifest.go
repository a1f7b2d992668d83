// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/openvwire/nsm/internal/config"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// The form of network services that users of the reference write for kubectl
// (docs/protocol.md, "Deployment"): the spec's keys are those of the registry's
// protobuf messages, in snake case.
const (
	manifestVersion = "networkservicemesh.io/v1"
	manifestKind    = "NetworkService"
)

// parseManifest reads network services: any number of YAML documents, each a
// NetworkService or a List of them. Errors are [nserr.BadService] and name
// file, line and key.
func parseManifest(file string, r io.Reader) (services []*adminv1.Service, err error) {
	for documents := yaml.NewDecoder(r); ; {
		var doc yaml.Node
		err := documents.Decode(&doc)
		if errors.Is(err, io.EOF) {
			if len(services) == 0 {
				return nil, nserr.BadService.Errorf("%s: there is no network service in it", file)
			}
			return services, nil
		}
		if err != nil {
			return nil, nserr.BadService.Errorf("%s: %v", file, err).WithFix("correct the YAML syntax")
		}
		if isNull(doc.Content[0]) {
			continue // nothing between two "---"
		}
		list, err := parseDocument(doc.Content[0], true)
		if err != nil {
			if e := (*nserr.Error)(nil); errors.As(err, &e) {
				return nil, nserr.BadService.Errorf("%s, %s", file, e.Msg).WithFix("%s", e.HowToFix())
			}
			return nil, nserr.BadService.Errorf("%s, %v", file, err)
		}
		services = append(services, list...)
	}
}

// parseDocument reads a NetworkService or, at the top, a List.
func parseDocument(n *yaml.Node, top bool) (services []*adminv1.Service, err error) {
	fields, err := mapping(n, "apiVersion", "kind", "metadata", "spec", "items", "status")
	if err != nil {
		return nil, err
	}
	if kind := fields["kind"]; top && kind != nil && kind.Value == "List" {
		for _, item := range contentOf(fields["items"]) {
			list, err := parseDocument(item, false)
			if err != nil {
				return nil, err
			}
			services = append(services, list...)
		}
		return services, nil
	}
	if err := checkKind(n, fields["kind"], fields["apiVersion"]); err != nil {
		return nil, err
	}
	s := &adminv1.Service{}
	if spec := fields["spec"]; spec != nil && !isNull(spec) {
		if err := decode(spec, s.ProtoReflect(), "endpoints"); err != nil {
			return nil, err
		}
	}
	s.PathIds = nil // the registry's to say; stands in what kubectl prints
	if s.GetName() == "" {
		s.Name = nameOf(fields["metadata"])
	}
	if s.GetName() == "" {
		return nil, lineError(n, "metadata.name is missing")
	}
	if p := s.GetPayload(); p != "" && p != "IP" && p != "ETHERNET" {
		return nil, lineError(n, "payload of %s is %q, want IP or ETHERNET", s.GetName(), p)
	}
	return []*adminv1.Service{s}, nil
}

// checkKind refuses documents that are something else.
func checkKind(doc, kind, version *yaml.Node) error {
	switch {
	case kind == nil:
		return lineError(doc, "kind is missing, want %s", manifestKind)
	case kind.Value == "NetworkServiceEndpoint":
		return nserr.BadService.Errorf("line %d: endpoints are not applied, they register themselves", kind.Line).
			WithFix("start the endpoint with 'nsm serve'; it is gone when its process is")
	case kind.Value != manifestKind:
		return lineError(kind, "kind is %q, want %s", kind.Value, manifestKind)
	case version == nil:
		return lineError(doc, "apiVersion is missing, want %s", manifestVersion)
	case version.Value != manifestVersion:
		return lineError(version, "apiVersion is %q, want %s", version.Value, manifestVersion)
	}
	return nil
}

// nameOf returns metadata.name. What else stands in metadata is Kubernetes'.
func nameOf(metadata *yaml.Node) string {
	content := contentOf(metadata)
	for i := 0; i+1 < len(content); i += 2 {
		if content[i].Value == "name" && content[i+1].Kind == yaml.ScalarNode {
			return content[i+1].Value
		}
	}
	return ""
}

// decode reads a YAML mapping into a message: its keys are the names of the
// message's fields, other than the hidden ones.
func decode(n *yaml.Node, m protoreflect.Message, hidden ...string) error {
	descriptors := m.Descriptor().Fields()
	var names []string
	for i := range descriptors.Len() {
		if name := string(descriptors.Get(i).Name()); !slices.Contains(hidden, name) {
			names = append(names, name)
		}
	}
	if _, err := mapping(n, names...); err != nil {
		return err
	}
	for i := 0; i < len(n.Content); i += 2 { // in the order of the file, for the error
		name, value := n.Content[i].Value, follow(n.Content[i+1])
		fd := descriptors.ByName(protoreflect.Name(name))
		var err error
		switch {
		case isNull(value):
		case fd.IsMap():
			err = decodeMap(value, m.Mutable(fd).Map(), name)
		case fd.IsList():
			err = decodeList(value, fd, m.Mutable(fd).List(), name)
		case fd.Message() != nil:
			err = decode(value, m.Mutable(fd).Message())
		default:
			var v protoreflect.Value
			if v, err = scalar(value, fd.Kind(), name); err == nil {
				m.Set(fd, v)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeList(n *yaml.Node, fd protoreflect.FieldDescriptor, list protoreflect.List, name string) error {
	if n.Kind != yaml.SequenceNode {
		return lineError(n, "%s: want a list", name)
	}
	for _, item := range n.Content {
		item = follow(item)
		if fd.Message() == nil {
			v, err := scalar(item, fd.Kind(), name)
			if err != nil {
				return err
			}
			list.Append(v)
		} else if err := decode(item, list.AppendMutable().Message()); err != nil {
			return err
		}
	}
	return nil
}

// decodeMap reads labels. In these messages every map is one from string to
// string.
func decodeMap(n *yaml.Node, m protoreflect.Map, name string) error {
	if n.Kind != yaml.MappingNode {
		return lineError(n, "%s: want key: value", name)
	}
	for i := 0; i < len(n.Content); i += 2 {
		v, err := scalar(follow(n.Content[i+1]), protoreflect.StringKind, name+"."+n.Content[i].Value)
		if err != nil {
			return err
		}
		m.Set(protoreflect.ValueOfString(n.Content[i].Value).MapKey(), v)
	}
	return nil
}

// scalar reads one plain value. YAML's guesses are not taken for strings: a
// label 1.20 would arrive as 1.2 elsewhere.
func scalar(n *yaml.Node, kind protoreflect.Kind, name string) (v protoreflect.Value, err error) {
	switch {
	case n.Kind != yaml.ScalarNode:
		return v, lineError(n, "%s: want a plain value", name)
	case kind == protoreflect.StringKind:
		if n.Tag != "!!str" {
			return v, lineError(n, "%s: %s is not a string; put it in quotes", name, n.Value)
		}
		return protoreflect.ValueOfString(n.Value), nil
	case kind == protoreflect.BoolKind:
		if n.Tag != "!!bool" {
			return v, lineError(n, "%s: want true or false, not %q", name, n.Value)
		}
		b, err := strconv.ParseBool(n.Value)
		return protoreflect.ValueOfBool(b), err
	case kind == protoreflect.Uint32Kind:
		number, err := strconv.ParseUint(n.Value, 10, 32)
		if err != nil {
			return v, lineError(n, "%s: want a whole number, not %q", name, n.Value)
		}
		return protoreflect.ValueOfUint32(uint32(number)), nil
	}
	return v, lineError(n, "%s cannot be set", name)
}

// mapping returns the values of a YAML mapping by key, which must be known and
// stand there once.
func mapping(n *yaml.Node, known ...string) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode {
		return nil, lineError(n, "want key: value lines")
	}
	fields := make(map[string]*yaml.Node)
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], follow(n.Content[i+1])
		if err := config.CheckKey(key.Value, known); err != nil {
			return nil, lineError(key, "key %v", err)
		}
		if fields[key.Value] != nil {
			return nil, lineError(key, "%s is set twice", key.Value)
		}
		fields[key.Value] = value
	}
	return fields, nil
}

func contentOf(n *yaml.Node) []*yaml.Node {
	if n == nil {
		return nil
	}
	return n.Content
}

// follow returns what an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func lineError(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: "+format, append([]any{n.Line}, args...)...)
}

// manifestOf is the inverse of parseManifest for one service.
func manifestOf(s *adminv1.Service) ([]byte, error) {
	spec := proto.CloneOf(s)
	spec.Name, spec.PathIds, spec.Endpoints = "", nil, 0
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	err := e.Encode(struct {
		APIVersion string            `yaml:"apiVersion"`
		Kind       string            `yaml:"kind"`
		Metadata   map[string]string `yaml:"metadata"`
		Spec       *yaml.Node        `yaml:"spec"`
	}{manifestVersion, manifestKind, map[string]string{"name": s.GetName()}, encode(spec.ProtoReflect())})
	return out.Bytes(), errors.Join(err, e.Close())
}

// encode is the inverse of decode, for the fields that are set.
func encode(m protoreflect.Message) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		key, value := &yaml.Node{}, &yaml.Node{}
		key.SetString(string(fd.Name()))
		switch v := m.Get(fd); {
		case fd.IsList() && fd.Message() != nil:
			value.Kind = yaml.SequenceNode
			for j := range v.List().Len() {
				value.Content = append(value.Content, encode(v.List().Get(j).Message()))
			}
		case fd.Message() != nil && !fd.IsMap():
			value = encode(v.Message())
		case fd.IsMap():
			labels := make(map[string]string)
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				labels[k.String()] = v.String()
				return true
			})
			_ = value.Encode(labels) // strings always encode
		default:
			_ = value.Encode(v.Interface())
		}
		n.Content = append(n.Content, key, value)
	}
	return n
}
